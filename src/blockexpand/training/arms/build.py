"""From an arm's settings to the arm."""

from __future__ import annotations

from blockexpand.training.arms.blocks import Blocks
from blockexpand.training.arms.lora import Lora
from blockexpand.training.arms.trainee import Arm
from blockexpand.training.arms.whole import Full, OldBlocks
from blockexpand.training.settings import ArmSettings, BasePrecision, BlocksArm, FullArm, LoraArm


def arm_of(settings: ArmSettings, base_precision: BasePrecision = "same") -> Arm:
    """The arm that the settings describe; only `blocks` can have a quantised base (`TrainSettings` sees to it)."""
    if isinstance(settings, BlocksArm):
        return Blocks(base_precision)
    if isinstance(settings, FullArm):
        return Full()
    if isinstance(settings, LoraArm):
        return Lora(rank=settings.rank, trainable_parameters=settings.trainable_parameters)
    return OldBlocks(settings.blocks)
