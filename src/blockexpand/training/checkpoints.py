"""Checkpoints of a run: what trains, its optimiser state and the step; nothing that the base already is.

Files: `trainable.safetensors`, `optimizer.safetensors`, `blockexpand.json`. Written beside and renamed;
the newest whole one is found by its step. No pickle.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockexpand.errors import TrainingError
from blockexpand.records import read_record, write_record
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.retention import Measurement

_NAME = re.compile(r"step-(\d{8})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; saved as a checkpoint's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.checkpoint"
    FORMAT_VERSION: ClassVar[int] = 1

    step: int
    """Steps done."""
    settings_digest: str
    """A run resumes only under the settings it began with."""
    general_weight: float = 1.0
    """The controller's: what the general rows' losses are multiplied by."""
    base_general: float | None = None
    """General validation loss at step 0."""
    best: Measurement | None = None
    """The measurement of the checkpoint to ship."""
    num_skipped: int = 0
    """Steps left out because their loss was not finite."""
    train_seconds: float = 0.0
    """Spent in steps, measuring and saving left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back."""

    progress: Progress
    trainable: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, each with memory of its own."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, str(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors back.

    Raises:
        TrainingError: the file is missing, cut short or damaged.
    """
    try:
        return load_file(str(path))
    except (FileNotFoundError, SafetensorError) as error:
        raise TrainingError(f"{path} is missing or damaged ({error}); resume from an older checkpoint") from None


def save_checkpoint(
    run: Path, progress: Progress, trainable: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], keep: int
) -> None:
    """Write the checkpoint of `progress.step` and remove all but the newest `keep`."""
    folder = run / "checkpoints" / f"step-{progress.step:08d}"
    if not folder.exists():
        with staged_folder(folder) as staged:
            save_tensors(staged / "trainable.safetensors", trainable)
            save_tensors(staged / "optimizer.safetensors", optimizer)
            write_record(staged / RECORD_NAME, progress)
    for _, old in _found(run)[:-keep]:
        shutil.rmtree(old)


def _found(run: Path) -> list[tuple[int, Path]]:
    folder = run / "checkpoints"
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(m.group(1)), path) for path in names if (m := _NAME.fullmatch(path.name)))


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or None when it has none yet."""
    found = _found(run)
    if not found:
        return None
    folder = found[-1][1]
    return Checkpoint(
        progress=read_record(Progress, folder / RECORD_NAME),
        trainable=load_tensors(folder / "trainable.safetensors"),
        optimizer=load_tensors(folder / "optimizer.safetensors"),
    )


def optimizer_tensors(optimizers: list[torch.optim.Optimizer], names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Every optimiser's state as flat tensors named `<state>|<parameter>`."""
    return {
        f"{key}|{names[parameter]}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizers(
    optimizers: list[torch.optim.Optimizer], names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put saved states back.

    Raises:
        TrainingError: a parameter's state is missing, or there is state of a parameter that does not train.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for flat, tensor in tensors.items():
        key, _, name = flat.partition("|")
        by_name.setdefault(name, {})[key] = tensor
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = by_name.pop(names[parameter], None)
                if state is None:
                    raise TrainingError(f"the checkpoint has no optimiser state for {names[parameter]}")
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }
    if by_name:
        raise TrainingError(f"the checkpoint has optimiser state for {min(by_name)}, which does not train here")
