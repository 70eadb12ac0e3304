"""Checkpoints of a run: what trains, its optimiser state and the step; nothing that the base already is.

Files: `trainable.safetensors`, `optimizer.safetensors`, `blockexpand.json`. The learning rate, the rows and
the random numbers of a step are functions of its number, so the step is all there is to say of them.
Written beside and renamed (saving.py), so the newest there is, is whole; refused: one that was damaged since.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blockexpand.errors import TrainingError
from blockexpand.records import read_record, write_record
from blockexpand.staging import RECORD_NAME
from blockexpand.training.retention import Measurement
from blockexpand.training.saving import Job, copied
from blockexpand.training.sharding import like, piece_of

_NAME = re.compile(r"step-(\d{8})")
TRAINABLE, OPTIMIZER = "trainable.safetensors", "optimizer.safetensors"
SHIPPED = "shipped.safetensors"
"""In a run's folder, in the place of `model/`: what trained, where no checkpoint of the family can hold it."""


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
    """Steps in a row, up to this one, left out because their loss was not finite."""
    num_skipped_in_all: int = 0
    """All steps left out because of that."""
    train_seconds: float = 0.0
    """Spent in steps, measuring and saving left out."""
    cpu_seconds: float = 0.0
    """Processor time of this process in steps, all its threads together."""


def checkpoint_job(
    run: Path, progress: Progress, tensors: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], keep: int, leads: bool
) -> Job:
    """What to write for `progress.step`, copied to the host; once written, all but the newest `keep` are removed.

    `tensors` are what trains and the optimiser's state.
    """
    trainable, optimizer = tensors

    def remove_old() -> None:
        folders = _found(run / "checkpoints")
        for _, old in folders[:-keep]:
            shutil.rmtree(old)
        kept = [read_progress(folder).best for _, folder in folders[-keep:]]
        referred = {best.step for best in kept if best is not None}
        for step, old in _found(run / "best"):
            if step not in referred and step < progress.step:
                shutil.rmtree(old)

    return Job(
        folder=checkpoint_folder(run, progress.step),
        files={TRAINABLE: copied(trainable, leads), OPTIMIZER: copied(optimizer, leads)},
        seal=lambda folder: write_record(folder / RECORD_NAME, progress),
        done=remove_old,
    )


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a step's checkpoint is."""
    return run / "checkpoints" / f"step-{step:08d}"


def best_folder(run: Path, step: int) -> Path:
    """Where the weights of a measured step are kept while they are the best; the checkpoints say which are."""
    return run / "best" / f"step-{step:08d}"


def best_job(run: Path, step: int, trainable: Mapping[str, Tensor], leads: bool) -> Job:
    """What to write to keep the weights of `step`, whatever is trained afterwards."""
    return Job(
        folder=best_folder(run, step),
        files={TRAINABLE: copied(trainable, leads)},
    )


def _found(folder: Path) -> list[tuple[int, Path]]:
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(m.group(1)), path) for path in names if (m := _NAME.fullmatch(path.name)))


def remove_unfinished(run: Path) -> None:
    """Remove what a crash left half-written."""
    for kind in ("checkpoints", "best"):
        for path in (run / kind).glob(".*.partial"):
            shutil.rmtree(path)


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint, or None when it has none yet."""
    found = _found(run / "checkpoints")
    return found[-1][1] if found else None


def last_good_checkpoint(run: Path) -> Path | None:
    """The folder of the newest checkpoint that was not saved amid steps whose loss was not finite."""
    found = reversed(_found(run / "checkpoints"))
    return next((folder for _, folder in found if not read_progress(folder).num_skipped), None)


def read_progress(folder: Path) -> Progress:
    """Where the run stood.

    Raises:
        RecordError: the record is missing or damaged.
    """
    return read_record(Progress, folder / RECORD_NAME)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that this process holds whole as safetensors, each with memory of its own."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, str(path))


class SavedTensors:
    """A file of tensors, of which each process reads its rows."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            TrainingError: it is missing, cut short or damaged.
        """
        self._path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt")
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path} is missing or damaged ({error}; {path.stat().st_size if path.exists() else 0:,} bytes); "
                f"expected it whole; remove the folder {path.parent} to resume from the checkpoint before it, or start "
                "again"
            ) from None
        self.names: tuple[str, ...] = tuple(self._file.keys())

    def rows_like(self, name: str, tensor: Tensor) -> Tensor:
        """The saved tensor, cut as `tensor` is.

        Raises:
            TrainingError: it has another shape.
        """
        part = self._file.get_slice(name)
        shape, piece = tuple(part.get_shape()), piece_of(tensor)
        if shape != piece.shape:
            raise TrainingError(
                f"{self._path} has {name} of shape {list(shape)}, and the run's is {list(piece.shape)}; expected the "
                "same plan and model as when it was saved; resume with those"
            )
        first = piece.first_row
        rows = part[first : first + len(piece.local)] if shape else self._file.get_tensor(name)
        return like(rows.to(piece.local.device), tensor)

    def whole(self, name: str) -> Tensor:
        """The saved tensor."""
        return self._file.get_tensor(name)


def optimizer_tensors(optimizers: list[torch.optim.Optimizer], names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Every optimiser's state as flat tensors named `<state>|<parameter>`."""
    return {
        f"{key}|{names[parameter]}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_trainable(trainable: Mapping[str, Tensor], saved: SavedTensors) -> None:
    """Put saved values back.

    Raises:
        TrainingError: they are not of this run's parameters.
    """
    if set(saved.names) != set(trainable):
        odd = min(set(saved.names) ^ set(trainable))
        where = "the checkpoint" if odd in saved.names else "the run"
        raise TrainingError(
            f"the checkpoint and the run do not train the same tensors: {odd} is in {where} only; expected the plan "
            "and the arm that it was saved under; resume with those"
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(saved.rows_like(name, parameter))


def restore_optimizers(
    optimizers: list[torch.optim.Optimizer], names: Mapping[Tensor, str], saved: SavedTensors
) -> None:
    """Put saved states back.

    Raises:
        TrainingError: a parameter's state is missing, or there is state of a parameter that does not train.
    """
    if not saved.names:  # saved before any step was taken: every one so far was skipped
        return
    keys: dict[str, list[str]] = {}
    for flat in saved.names:
        key, _, name = flat.partition("|")
        keys.setdefault(name, []).append(key)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                mine = keys.pop(names[parameter], None)
                if mine is None:
                    raise TrainingError(f"the checkpoint has no optimiser state for {names[parameter]}")
                optimizer.state[parameter] = {key: _state(key, names[parameter], parameter, saved) for key in mine}
    if keys:
        raise TrainingError(f"the checkpoint has optimiser state for {min(keys)}, which does not train here")


def _state(key: str, name: str, parameter: Tensor, saved: SavedTensors) -> Tensor:
    flat = f"{key}|{name}"
    return saved.whole(flat) if key == "step" else saved.rows_like(flat, parameter)
