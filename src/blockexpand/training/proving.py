"""After training: that a shipped folder differs from the one the run began with in what trained, and in nothing else.

In: the two folders and the names of the tensors that trained. Out: how many tensors are the same, byte for
byte. Refused: a tensor of the old ones that changed, or one that is missing.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blockexpand.checkpoint import TensorEntry, open_checkpoint
from blockexpand.checkpoint.header import open_to_read
from blockexpand.errors import TrainingError

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
