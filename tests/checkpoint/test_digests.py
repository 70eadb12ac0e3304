"""Digests anyone can check, and numbers that are not numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from blockexpand.checkpoint import digest_tensors, open_checkpoint, refuse_not_finite, streams
from blockexpand.errors import CheckpointError
from helpers import MakeBase

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def hashed(tensor: torch.Tensor) -> str:
    return "blake3:" + blake3(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("chunk_bytes", [8, 1 << 20])
def test_a_tensors_digest_is_the_blake3_of_its_bytes(
    tiny_base: MakeBase, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "_CHUNK_BYTES", chunk_bytes)
    folder = tiny_base("llama", sharded=True)
    found = digest_tensors(open_checkpoint(folder))
    tensors = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    assert {name: result.digest for name, result in found.items()} == {n: hashed(t) for n, t in tensors.items()}
    assert not any(result.all_zero or result.num_not_finite for result in found.values())


def one(tmp_path: Path, own_base: MakeBase, tensor: torch.Tensor):
    folder = own_base("llama")
    save_file({"x": tensor}, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([1.0, -2.0, 0.0, 65504.0], 0),
        ([float("nan"), 1.0], 1),
        ([float("inf"), float("-inf"), 3.0], 2),
        ([-float("nan")], 1),
    ],
)
def test_nan_and_infinity_are_counted_and_the_largest_finite_numbers_are_not(
    tmp_path: Path, own_base: MakeBase, dtype: str, values: list[float], count: int
):
    checkpoint = one(tmp_path, own_base, torch.tensor(values * 3, dtype=TORCH[dtype]))
    assert checkpoint.tensors["x"].dtype == dtype
    digests = digest_tensors(checkpoint)
    assert digests["x"].num_not_finite == 3 * count
    if not count:
        refuse_not_finite(checkpoint, digests)
        return
    with pytest.raises(CheckpointError, match=rf"'x' holds {3 * count} NaN or infinite values of {3 * len(values)};"):
        refuse_not_finite(checkpoint, digests)


@pytest.mark.parametrize("where", [0, 70, 4095, None])
def test_zero_means_every_byte(tmp_path: Path, own_base: MakeBase, where: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 1024)
    values = torch.zeros(4096, dtype=torch.uint8)
    if where is not None:
        values[where] = 1
    assert digest_tensors(one(tmp_path, own_base, values))["x"].all_zero is (where is None)


def test_a_file_that_shrinks_while_it_is_read_is_refused(own_base: MakeBase):
    checkpoint = open_checkpoint(own_base("llama"))
    path = checkpoint.folder / "model.safetensors"
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size - 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ended at byte [\d,]+ while it was read"):
        digest_tensors(checkpoint)
