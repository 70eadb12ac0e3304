"""Trained tensors back into a plain Hugging Face folder, and the proof that nothing else changed.

The checkpoint that the run started from is copied byte for byte, and the bytes of what was trained are written over
their places; then every other tensor is compared, byte for byte. An expanded folder's record comes along and says that
it was trained; its proof, which was about the untrained blocks, does not.
Refused: a tensor that did not train and changed, or one that is missing.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockexpand.checkpoint import (
    CONFIG,
    Checkpoint,
    TensorEntry,
    copy_files,
    declare_end,
    open_checkpoint,
    other_files,
)
from blockexpand.checkpoint.ends import GENERATION
from blockexpand.checkpoint.header import open_to_read
from blockexpand.errors import TrainingError
from blockexpand.records import read_json, write_record
from blockexpand.records.expansion import ExpansionRecord, FileText, read_expansion
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.units import FLOATS, torch_dtype

_INDEX = "model.safetensors.index.json"


def export_model(
    source: Path,
    out: Path,
    tensors: Mapping[str, Tensor],
    training: Mapping[str, Any],
    turn_end: int | None = None,
) -> None:
    """Write `out`: the checkpoint in `source` with `tensors` in place of its own, in the file's dtypes.

    Args:
        source: The folder the run started from.
        out: The folder to write; an earlier one of the same run is replaced.
        tensors: What was trained, by the names on disk.
        training: What an expanded folder's record says of it.
        turn_end: The token that ends a chat's turn, where chats were trained: it becomes one of those that the shipped
            folder's generation_config.json names, so that every program stops there. The record keeps the base's file.

    Raises:
        TrainingError: a tensor is not in the checkpoint, has another shape, or an unknown dtype.
    """
    checkpoint = open_checkpoint(source)
    for name, tensor in tensors.items():
        entry = checkpoint.tensors.get(name)
        if entry is None or tuple(entry.shape) != tuple(tensor.shape) or entry.dtype not in FLOATS:
            found = f"{entry.dtype}{list(entry.shape)}" if entry else "no such tensor"
            raise TrainingError(f"{source} has {found} for {name}; expected shape {list(tensor.shape)}")
    # Where the folder is there already (a run that was killed while it wrote its record), it stays until the new one
    # stands beside it.
    new, older = out.with_name(f"{out.name}.new"), out.with_name(f".{out.name}.older")
    for left in (new, older):
        shutil.rmtree(left, ignore_errors=True)
    with staged_folder(new if out.exists() else out) as folder:
        index = (_INDEX,) if checkpoint.sharded else ()
        record = _expansion(checkpoint.folder)
        others = other_files(checkpoint).copied
        copy_files(checkpoint, [*others, CONFIG, *checkpoint.shards, *index], folder)
        for name, tensor in tensors.items():
            _overwrite(checkpoint, folder, name, tensor)
        before = declare_end(folder, turn_end) if turn_end is not None else None
        if record is not None:
            if before is not None and record.base_files and all(file.name != GENERATION for file in record.base_files):
                files = (*record.base_files, FileText(name=GENERATION, text=before))
                record = dataclasses.replace(record, base_files=files)
            history = {**training, "before": record.training} if record.training else dict(training)
            write_record(folder / RECORD_NAME, dataclasses.replace(record, proof=None, training=history))
    if new.exists():
        os.rename(out, older)
        os.rename(new, out)
        shutil.rmtree(older)


def _overwrite(checkpoint: Checkpoint, folder: Path, name: str, tensor: Tensor) -> None:
    entry = checkpoint.tensors[name]
    data = tensor.detach().cpu().to(torch_dtype(entry.dtype)).contiguous().view(torch.uint8).numpy().tobytes()
    assert len(data) == entry.end - entry.start, f"{name}: {len(data)} bytes for {entry}"
    with open(folder / entry.file, "r+b") as stream:
        stream.seek(entry.start)
        stream.write(data)


def _expansion(folder: Path) -> ExpansionRecord | None:
    path = folder / RECORD_NAME
    if not path.is_file() or read_json(path).get("format") != ExpansionRecord.FORMAT:
        return None
    return read_expansion(folder)


_CHUNK_BYTES = 1 << 22
_NUM_THREADS = 2


def prove_unchanged(source: Path, out: Path, trained: Collection[str]) -> int:
    """Compare every tensor that did not train, byte for byte; give back how many there are.

    Raises:
        TrainingError: one differs, or the folders do not hold the same tensors.
    """
    before, after = open_checkpoint(source), open_checkpoint(out)
    odd = sorted(set(before.tensors) ^ set(after.tensors)) or sorted(set(trained) - set(before.tensors))
    if odd:
        raise TrainingError(f"{out} and {source} do not hold the same tensors: {odd[0]} is in one only; train again")
    old = [name for name in before.tensors if name not in trained]

    def same(name: str) -> bool:
        return _same_bytes(source, before.tensors[name], out, after.tensors[name])

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for name, equal in zip(old, pool.map(same, old), strict=True):
            if not equal:
                raise TrainingError(
                    f"{out} holds {name} with other bytes than {source}, and it did not train; expected it unchanged; "
                    "do not use the folder, and train again from a sound disk"
                )
    assert len(old) + len(trained) == len(before.tensors), f"{len(old)} + {len(trained)} of {len(before.tensors)}"
    return len(old)


def _same_bytes(source: Path, before: TensorEntry, out: Path, after: TensorEntry) -> bool:
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return False
    with open_to_read(source / before.file) as one, open_to_read(out / after.file) as other:
        one.seek(before.start)
        other.seek(after.start)
        left = before.num_bytes
        while left:
            size = min(left, _CHUNK_BYTES)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True
