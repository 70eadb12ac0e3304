"""From an arm's settings to the arm."""

from __future__ import annotations

from blockexpand.training.arms.blocks import Blocks
from blockexpand.training.arms.lora import Lora
from blockexpand.training.arms.trainee import Arm
from blockexpand.training.arms.whole import Full, OldBlocks
from blockexpand.training.settings import ArmSettings, BlocksArm, FullArm, LoraArm


def arm_of(settings: ArmSettings) -> Arm:
    """The arm that the settings describe."""
    if isinstance(settings, BlocksArm):
        return Blocks()
    if isinstance(settings, FullArm):
        return Full()
    if isinstance(settings, LoraArm):
        return Lora(rank=settings.rank, trainable_parameters=settings.trainable_parameters)
    return OldBlocks(settings.blocks)
