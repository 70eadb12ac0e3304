"""What a finished run gave, to be used: the folder of its checkpoint, or the model built again.

In: a run's folder. Out: `model/`, where a checkpoint of the family holds what was trained; in any case the model in
memory. Refused: a run that is not finished, and the folder of a checkpoint that no family can write.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.records import read_record
from blockexpand.staging import RECORD_NAME
from blockexpand.training.arms.build import arm_of
from blockexpand.training.arms.trainee import load_model
from blockexpand.training.checkpoints import SHIPPED, SavedTensors, restore_trainable
from blockexpand.training.running import RunRecord


def shipped_folder(run: Path) -> Path:
    """The folder of the checkpoint that a run gave.

    Raises:
        TrainingError: the run is not finished, or no checkpoint of the family can hold what it trained.
    """
    record = _record(run)
    if not record.exported:
        raise TrainingError(
            f"{run} trained the arm {record.settings.arm.kind!r}, which no checkpoint of the family can hold; expected "
            "an arm that can be exported (blocks, old-blocks, full, lora, moe, upscaled); `compare` measures this one"
        )
    return run / "model"


def load_shipped(run: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model that a run gave, frozen, in eval mode: what its checkpoint holds, or what was kept instead.

    Raises:
        TrainingError: the run is not finished, or what it kept is damaged.
        LiveError: the checkpoint cannot be loaded.
    """
    record = _record(run)
    if record.exported:
        return load_model(run / "model", dtype)
    trainee = arm_of(record.settings.arm).load(Path(record.settings.model), dtype, needs_reference=False)
    restore_trainable(trainee.trainable, SavedTensors(run / SHIPPED))
    trainee.model.requires_grad_(False)
    return trainee.model


def _record(run: Path) -> RunRecord:
    if not (run / RECORD_NAME).is_file():
        raise TrainingError(
            f"{run} is no finished run: it has no {RECORD_NAME}; expected a run's folder; train it first"
        )
    return read_record(RunRecord, run / RECORD_NAME)
