"""Checkpoints of a run: what trains, its optimiser state and the step; nothing that the base already is.

Files: `trainable.safetensors`, `optimizer.safetensors`, `blockexpand.json`. The learning rate, the rows and the
random numbers of a step are functions of its number, so the step is all there is to say of them.

They are written beside and renamed, by a thread, while training goes on. Each process writes its rows straight to
their places in the shared file, so that neither names nor files depend on how many processes there were; nothing is
gathered, and there is no pickle (as there would be in torch.distributed.checkpoint's own format). The copy to the host
blocks the caller, the writing does not; the next save and `finish` wait for it, and an error in the thread surfaces at
the next step. Refused: a checkpoint that was damaged since, or is not of this run's parameters.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blockexpand.checkpoint.header import TensorEntry, build_header, read_header
from blockexpand.errors import TrainingError
from blockexpand.records import read_record, write_record
from blockexpand.records.run import Measurement
from blockexpand.staging import RECORD_NAME, flush_folder, full_disk_is_an_error
from blockexpand.training.processes import Piece, World, like, piece_of
from blockexpand.units import stored_dtype

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
    general_weight: float = 1.0
    """The controller's: what the general rows' losses are multiplied by."""
    base_general: tuple[float, ...] | None = None
    """The base's general validation loss, summed over each document of the steering rows."""
    base_domain: float | None = None
    """The base's domain loss on the steering rows, nats a token."""
    best: Measurement | None = None
    """The measurement of the checkpoint to ship."""
    last: Measurement | None = None
    """The latest one."""
    num_skipped: int = 0
    """Steps in a row, up to this one, left out because their loss was not finite."""
    num_skipped_in_all: int = 0
    """All steps left out because of that."""
    train_seconds: float = 0.0
    """Spent in steps, measuring and saving left out."""
    cpu_seconds: float = 0.0
    """Processor time of this process in steps, all its threads together."""
    load_seconds: float = 0.0
    """The machine's load average (of a minute), summed over these seconds."""


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


Pieces = Mapping[str, Piece]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One folder to write."""

    folder: Path
    """Where it will be; until it is whole it has a hidden name beside this."""
    files: Mapping[str, Pieces]
    """What goes into each file, by its name; held on the host, for nobody else."""
    seal: Callable[[Path], None] | None = None
    """Called by the first process on the folder when all tensors are in it: writes the record, which comes last."""
    done: Callable[[], None] | None = None
    """Called by the first process when the folder has its name."""


class Saver:
    """Writes one folder at a time, in a thread."""

    def __init__(self, world: World) -> None:
        """Every process of the run makes one at the same time."""
        self._world = world
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future[None] | None = None
        # Of its own, so that the thread's messages cannot be taken for the training's.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None

    def start(self, job: Job) -> None:
        """Begin to write; waits for the folder before.

        Raises:
            StagingError, TrainingError, OSError: the folder before could not be written.
        """
        self.finish()
        self._pending = self._pool.submit(self._write, job)

    def check(self) -> None:
        """Raise what went wrong in the thread, if it already has."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is written, and raise what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let the thread end; what it is writing it finishes."""
        self._pool.shutdown()

    def _write(self, job: Job) -> None:
        staged = job.folder.with_name(f".{job.folder.name}.partial")
        try:
            with full_disk_is_an_error(job.folder):
                self._together(lambda: _prepare(staged, job.files), alone=True)
                self._together(lambda: _write_mine(staged, job.files))
                self._together(lambda: _seal(staged, job), alone=True)
        finally:
            if self._world.leads:  # it has its name by now, or never will
                shutil.rmtree(staged, ignore_errors=True)

    def _together(self, work: Callable[[], None], alone: bool = False) -> None:
        """Do something in every process, or in the first `alone`; all know then whether all could."""
        done = False
        try:
            if self._world.leads or not alone:
                work()
            done = True
        finally:
            others = self._all_of(done)
        if not others:
            raise TrainingError("another process could not write its part of the checkpoint; its message says why")

    def _all_of(self, done: bool) -> bool:
        if self._group is None:
            return done
        failures = torch.tensor([0 if done else 1])
        dist.all_reduce(failures, group=self._group)
        return not failures.item()


def copied(tensors: Mapping[str, Tensor], leads: bool) -> dict[str, Piece]:
    """What this process is to write of these tensors, copied to the host."""
    pieces = {name: piece_of(tensor, leads) for name, tensor in tensors.items()}
    return {
        name: dataclasses.replace(piece, local=piece.local.to("cpu", copy=True).contiguous())
        for name, piece in pieces.items()
    }


def _prepare(staged: Path, files: Mapping[str, Pieces]) -> None:
    """The folder with its files, at their full length and with their headers."""
    if staged.exists():  # a crash's
        shutil.rmtree(staged)
    staged.mkdir(parents=True)
    for name, pieces in files.items():
        rows = [(tensor, stored_dtype(piece.local.dtype), piece.shape) for tensor, piece in sorted(pieces.items())]
        with open(staged / name, "xb") as stream:
            stream.write(build_header(rows, {"format": "pt"}))
            end = stream.tell() + sum(_num_bytes(piece) for piece in pieces.values())
            os.posix_fallocate(stream.fileno(), 0, end)  # a full disk shows here, before anything is written


def _num_bytes(piece: Piece) -> int:
    return piece.local.element_size() * torch.Size(piece.shape).numel()


def _write_mine(staged: Path, files: Mapping[str, Pieces]) -> None:
    """This process's rows to their places."""
    for name, pieces in files.items():
        entries = read_header(staged / name).tensors
        with open(staged / name, "r+b") as stream:
            for tensor, piece in pieces.items():
                if piece.mine:
                    _put(stream.fileno(), entries[tensor], piece)
            os.fsync(stream.fileno())


def _put(handle: int, entry: TensorEntry, piece: Piece) -> None:
    data = memoryview(piece.local.reshape(-1).view(torch.uint8).numpy())
    row_bytes = entry.num_bytes // piece.shape[0] if piece.shape else entry.num_bytes
    at = entry.start + piece.first_row * row_bytes
    assert at + len(data) <= entry.end, f"{len(data)} bytes at {at} of {entry}"
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


def _seal(staged: Path, job: Job) -> None:
    if job.seal is not None:
        job.seal(staged)
    flush_folder(staged)
    if job.folder.exists():  # the same step, saved before by a run that then went back to an older one
        shutil.rmtree(job.folder)
    os.rename(staged, job.folder)
    flush_folder(job.folder.parent)
    if job.done is not None:
        job.done()
