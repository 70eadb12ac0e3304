"""From an arm's settings to the arm."""

from __future__ import annotations

from blockexpand.training.arms.blocks import Blocks
from blockexpand.training.arms.lora import Lora
from blockexpand.training.arms.moe import Moe
from blockexpand.training.arms.parallel import Parallel
from blockexpand.training.arms.trainee import Arm
from blockexpand.training.arms.upscaled import Upscaled
from blockexpand.training.arms.whole import Full, OldBlocks
from blockexpand.training.settings import (
    ArmSettings,
    BasePrecision,
    BlocksArm,
    FullArm,
    LoraArm,
    MoeArm,
    ParallelArm,
    UpscaledArm,
)


def arm_of(settings: ArmSettings, base_precision: BasePrecision = "same") -> Arm:
    """The arm that the settings describe; only `blocks` can have a quantised base (`TrainSettings` sees to it)."""
    if isinstance(settings, BlocksArm):
        return Blocks(base_precision)
    if isinstance(settings, FullArm):
        return Full()
    if isinstance(settings, LoraArm):
        return Lora(rank=settings.rank, trainable_parameters=settings.trainable_parameters)
    if isinstance(settings, UpscaledArm):
        return Upscaled()
    if isinstance(settings, MoeArm):
        return Moe(settings.start)
    if isinstance(settings, ParallelArm):
        return Parallel(settings.blocks, settings.share)
    return OldBlocks(settings.blocks)
