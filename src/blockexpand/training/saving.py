"""Saving while training goes on: tensors of many processes into one file, beside and renamed, by a thread.

In: tensors whose rows lie on the processes of a run. Out: plain safetensors files that hold the whole
tensors, so that neither names nor files depend on how many processes there were. Each process writes its
rows straight to their places in the shared file; nothing is gathered, and there is no pickle (as there would be in
torch.distributed.checkpoint's own format). The copy to the host blocks the caller, the writing does not;
the next save and `finish` wait for it, and an error in the thread surfaces at the next step.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from blockexpand.checkpoint.header import TensorEntry, build_header, read_header
from blockexpand.errors import TrainingError
from blockexpand.staging import flush_folder, full_disk_is_an_error
from blockexpand.training.sharding import Piece, piece_of
from blockexpand.training.world import World
from blockexpand.units import stored_dtype

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
