"""Bytes keep their offsets modulo 64 KiB; what is copied is hashed; errors stop all threads; comparing finds a bit."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blockexpand.checkpoint import (
    Checkpoint,
    OutputTensor,
    compare_tensors,
    digest_tensors,
    lay_out,
    open_checkpoint,
    output_tensor,
    passes,
    refuse_not_finite,
    streams,
    write_weights,
    writer,
)
from blockexpand.checkpoint.header import ALIGNMENT_BYTES, TensorEntry
from blockexpand.checkpoint.streams import WINDOW_BYTES, in_threads, runs_of, windows
from blockexpand.errors import CheckpointError
from helpers import MakeBase


@pytest.fixture
def larger(own_base: MakeBase) -> Path:
    """Matrices of whole 64 KiB, norms of less, in one file."""
    return own_base(
        "llama", hidden_size=256, intermediate_size=512, vocab_size=128, num_key_value_heads=4, sharded=False
    )


def added_to(folder: Path) -> list[OutputTensor]:
    found = []
    for name, entry in open_checkpoint(folder).tensors.items():
        if ".layers.1." in name or ".layers.3." in name:
            starts = "zero" if "o_proj" in name or "down_proj" in name else "donor"
            found.append(output_tensor(f"new.{name}", entry, starts))
    return found


def write(folder: Path, out: Path, digest: bool = False):
    base = open_checkpoint(folder)
    out.mkdir()
    files = lay_out(base, {name: name for name in base.tensors}, added_to(folder))
    digests = write_weights(base, files, out, digest=digest)
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return base, open_checkpoint(out), digests


def llama_7b() -> Checkpoint:
    """Where the tensors of 16 blocks of a 7B Llama lie, in two shards whose data begins anywhere."""
    sizes = {"in": 8192, "q": 1 << 25, "k": 1 << 25, "v": 1 << 25, "o": 1 << 25, "post": 8192, "gate": 90177536}
    tensors = {}
    for file, position, blocks in (("a", 31_264, range(8)), ("b", 29_808, range(8, 16))):
        for block in blocks:
            for tail, size in {**sizes, "up": sizes["gate"], "down": sizes["gate"]}.items():
                entry = TensorEntry(file=file, dtype="U8", shape=(size,), start=position, end=position + size)
                tensors[f"{block}.{tail}"] = entry
                position = entry.end
    return Checkpoint(source="", folder=Path(), config={}, tensors=tensors, metadata={}, sharded=True)


def test_every_large_copy_of_a_7b_keeps_its_offset_modulo_64_kib():
    base = llama_7b()
    added = [
        output_tensor(f"new.{name}", entry, "zero" if name.split(".")[1] in ("o", "down") else "donor")
        for name, entry in base.tensors.items()
        if name.split(".")[0] in ("3", "7", "11", "15")
    ]
    files = lay_out(base, {name: name for name in base.tensors}, added)
    assert [file.name[:11] for file in files] == [f"model-{i:05d}" for i in (1, 2, 3, 4)]
    aligned = 0
    for file in files:
        position = writer._data_residue(file)
        for tensor in file.tensors:
            if tensor.source is not None and (tensor.num_bytes > ALIGNMENT_BYTES or not tensor.name.startswith("new")):
                assert (position - tensor.source.start) % ALIGNMENT_BYTES == 0, tensor.name
                aligned += 1
            position += tensor.num_bytes
    assert aligned == 16 * 9 + 4 * 5


def test_threads_write_the_same_bytes(larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(larger, tmp_path / "alone")
    monkeypatch.setattr(streams, "_ALONE_BYTES", 0)
    monkeypatch.setattr(streams, "_RUN_BYTES", 1 << 18)
    monkeypatch.setattr(streams, "WINDOW_BYTES", 1 << 16)
    monkeypatch.setattr(passes, "WINDOW_BYTES", 1 << 16)
    base, _, digests = write(larger, tmp_path / "threads", digest=True)
    assert len(runs_of(base.tensors.values())) > len(base.shards)
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "threads" / path.name).read_bytes()
    assert digests == digest_tensors(base)


def test_an_error_in_one_thread_stops_the_others(larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "_ALONE_BYTES", 0)
    base = open_checkpoint(larger)
    last = larger / base.shards[-1]
    os.truncate(last, last.stat().st_size - 100)
    (tmp_path / "out").mkdir()
    files = lay_out(base, {name: name for name in base.tensors}, [])
    with pytest.raises(CheckpointError, match=r"ended at byte [\d,]+ while it was read"):
        write_weights(base, files, tmp_path / "out")


def test_work_ends_early_when_it_is_told_to():
    seen: list[int] = []
    failed = Event()

    def work(job: int, stopping: Event) -> int:
        if job == 0:
            failed.set()
            raise ValueError("first")
        failed.wait(10)
        assert stopping.wait(10)
        seen.append(job)
        return job

    with pytest.raises(ValueError, match="first"):
        in_threads(work, range(50), 1 << 40)
    assert len(seen) <= streams.NUM_THREADS


@given(st.integers(0, 1 << 26), st.integers(0, 1 << 26))
def test_windows_cover_the_range_and_begin_at_round_offsets(start: int, size: int):
    found = list(windows(start, start + size))
    assert [a for a, _ in found] == ([start] + [b for _, b in found])[: len(found)]
    assert (found[-1][1] if found else start + size) == start + size
    assert all(a % ALIGNMENT_BYTES == 0 for a, _ in found[1:])
    assert all(0 < b - a <= WINDOW_BYTES for a, b in found)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 << 30)), max_size=12))
def test_runs_hold_every_tensor_once_and_one_file_each(items: list[tuple[str, int]]):
    entries, ends = [], dict.fromkeys("abc", 0)
    for file, size in items:
        entries.append(TensorEntry(file=file, dtype="U8", shape=(size,), start=ends[file], end=ends[file] + size))
        ends[file] += size
    runs = runs_of(entries)
    key = lambda e: (e.file, e.start, e.end)  # noqa: E731
    assert sorted((e for run in runs for e in run), key=key) == sorted(entries, key=key)
    for run in runs:
        assert len({e.file for e in run}) == 1
        assert len(run) == 1 or run[-1].end - run[0].start <= streams._RUN_BYTES


@pytest.mark.parametrize("where", [0, 77_777, -1])
def test_comparing_finds_one_changed_bit_and_only_its_tensor(larger: Path, tmp_path: Path, where: int):
    base, out, _ = write(larger, tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    entry = out.tensors[f"new.{name}"]
    with open(out.folder / entry.file, "r+b") as stream:
        offset = entry.start + where % entry.num_bytes
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    found = compare_tensors(base, out, {name: [name, f"new.{name}"], "model.norm.weight": ["model.norm.weight"]})
    assert found.different == {f"new.{name}"}
    assert found.num_not_finite == {name: 0, "model.norm.weight": 0}


def test_comparing_counts_what_is_not_a_number(larger: Path):
    base = open_checkpoint(larger)
    entry = base.tensors["model.norm.weight"]
    with open(larger / entry.file, "r+b") as stream:
        stream.seek(entry.start + 6)
        stream.write(b"\xc0\x7f\x80\xff")
    found = compare_tensors(base, base, {"model.norm.weight": ["model.norm.weight"]})
    assert found.num_not_finite == {"model.norm.weight": 2}
    assert found.different == frozenset()


# --- Digests anyone can check, and numbers that are not numbers ---


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
