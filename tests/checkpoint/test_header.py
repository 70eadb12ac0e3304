"""Safetensors headers: what we write others read, what others write we read, and what lies is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from blockexpand.checkpoint import open_checkpoint
from blockexpand.checkpoint.header import ALIGNMENT_BYTES, build_header, parse_header, read_header
from blockexpand.errors import CheckpointError
from blockexpand.units import DTYPES
from helpers import MakeBase

PATH = Path("some/model.safetensors")
GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]},
}


def parse(header: Any, data_bytes: int = 28) -> Any:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(raw, data_bytes, PATH)


def test_a_good_header_gives_absolute_byte_ranges_in_the_order_of_the_bytes():
    header = parse({"b": GOOD["b"], "a": GOOD["a"], "__metadata__": {"format": "pt"}})
    assert list(header.tensors) == ["a", "b"]
    assert header.metadata == {"format": "pt"}
    start = header.data_start
    a, b = header.tensors["a"], header.tensors["b"]
    assert (a.start - start, a.end - start, b.start - start, b.end - start) == (0, 24, 24, 28)
    assert (a.dtype, a.shape, a.num_elements, a.num_bytes, a.file) == (
        "F32",
        (2, 3),
        6,
        24,
        "model.safetensors",
    )


BAD: list[tuple[Any, list[str]]] = [
    (b"[1]", ["begins with b'[1]'"]),
    (b"{\xff}", ["not UTF-8", "byte 1"]),
    (b"{", ["not JSON"]),
    (b'{"a":1,"a":2}', ["'a' appears twice"]),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["nested too deeply"]),
    (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,28]}}', ["4300"]),
    (b'{"a":NaN}', ["NaN"]),
    ({"__metadata__": {"x": 1}}, ["__metadata__", "{'x': 1}"]),
    ({"a": 3}, ["'a'", "as 3", "exactly dtype, shape and data_offsets"]),
    ({"a": {**GOOD["a"], "more": 1}}, ["'more': 1"]),
    ({"a": {"dtype": "F31", "shape": [7], "data_offsets": [0, 28]}}, ["'F31'", "F32"]),
    ({"a": {"dtype": "F32", "shape": [-7], "data_offsets": [0, 28]}}, ["[-7]", "whole numbers"]),
    ({"a": {"dtype": "F32", "shape": [True, 7], "data_offsets": [0, 28]}}, ["[True, 7]"]),
    ({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28, 28]}}, ["[0, 28, 28]"]),
    ({"a": {"dtype": "F32", "shape": [7], "data_offsets": [28, 0]}}, ["28 to 0"]),
    ({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}, ["0 to 32 of 28"]),
    ({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 28]}}, ["28 bytes", "[6]"]),
    ({"a": {"dtype": "F32", "shape": [10**9] * 20_000, "data_offsets": [0, 28]}}, ["28 bytes"]),
    ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, ["F4"]),
    ({"a": GOOD["a"], "b": {**GOOD["b"], "data_offsets": [20, 24]}}, ["'b' overlaps 'a'", "4 bytes"]),
    ({"a": {**GOOD["a"], "data_offsets": [4, 28]}}, ["'a' leaves a gap after 'the header'"]),
    (
        {"a": {**GOOD["a"], "shape": [5], "data_offsets": [0, 20]}, "b": GOOD["b"]},
        ["'b' leaves a gap after 'a'"],
    ),
    ({"a": GOOD["a"]}, ["4 bytes after the last tensor"]),
    ({"b": {**GOOD["b"], "data_offsets": [0, 4]}, "c": {**GOOD["b"], "data_offsets": [0, 4]}}, ["overlaps"]),
    (b'{"\\ud800":{"dtype":"U8","shape":[28],"data_offsets":[0,28]}}', ["cannot be written as UTF-8"]),
]


@pytest.mark.parametrize(("header", "words"), BAD, ids=[words[0][:24] for _, words in BAD])
def test_a_lying_header_is_refused_with_what_it_says(header: Any, words: list[str]):
    with pytest.raises(CheckpointError) as raised:
        parse(header)
    message = str(raised.value)
    assert "model.safetensors" in message
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


def write(path: Path, length: int, rest: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", length) + rest)
    return path


@pytest.mark.parametrize(
    ("length", "rest", "words"),
    [
        (10**12, b"{}", "1,000,000,000,000 bytes; expected at most 100,000,000"),
        (2**64 - 1, b"{}", "at most 100,000,000"),
        (100_000_000, b"{}", "100,000,000 bytes but is only 10 bytes long"),
        (3, b"{}", "3 bytes but is only 10"),
    ],
)
def test_a_header_length_is_believed_only_within_the_file(tmp_path: Path, length: int, rest: bytes, words: str):
    with pytest.raises(CheckpointError, match=words):
        read_header(write(tmp_path / "x.safetensors", length, rest))


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read: Is a directory"):
        read_header(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=f"{path} cannot be read: it is a pipe or a device"):
            read_header(path)


def test_our_dtypes_are_those_of_the_safetensors_library():
    for dtype, bits in ((name, kind.bits) for name, kind in DTYPES.items()):
        header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}).encode()
        assert safetensors.deserialize(struct.pack("<Q", len(header)) + header + bytes(bits))
        assert parse_header(header, bits, PATH).tensors["a"].num_bytes == bits
    header = b'{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}'
    with pytest.raises(safetensors.SafetensorError, match="expected one of") as raised:
        safetensors.deserialize(struct.pack("<Q", len(header)) + header + bytes(16))
    for dtype in str(raised.value).split("expected one of")[1].split("at line")[0].split(","):
        assert dtype.strip().strip("`") in DTYPES


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
WHOLE = sorted(d for d, kind in DTYPES.items() if kind.bits % 8 == 0)
TENSORS = st.lists(
    st.tuples(NAMES, st.sampled_from(WHOLE), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=6,
    unique_by=lambda t: t[0],
)


@settings(max_examples=60, deadline=None)
@given(tensors=TENSORS, metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_we_write_safetensors_and_we_read_back(tensors: list[Any], metadata: dict[str, str]):
    head = build_header(tensors, metadata)
    assert len(head) % ALIGNMENT_BYTES == 0
    size = sum(
        DTYPES[d].bits // 8 * (s[0] if s else 1) * (s[1] if len(s) > 1 else 1) * (s[2] if len(s) > 2 else 1)
        for _, d, s in tensors
    )
    header = parse_header(head[8:], size, PATH)
    assert header.metadata == metadata
    assert [(n, e.dtype, e.shape) for n, e in header.tensors.items()] == tensors or any(0 in s for _, _, s in tensors)
    assert header.data_start == len(head)
    theirs = dict(safetensors.deserialize(head + bytes(size)))
    assert {n: (v["dtype"], tuple(v["shape"])) for n, v in theirs.items()} == {n: (d, s) for n, d, s in tensors}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_header_changed_at_random_is_read_whole_or_refused_in_words(data: st.DataObject):
    raw = bytearray(json.dumps({**GOOD, "__metadata__": {"format": "pt"}}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(raw), 28, PATH)
    except CheckpointError:
        return
    assert sum(entry.num_bytes for entry in header.tensors.values()) == 28


def test_a_header_longer_than_readers_accept_is_not_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("blockexpand.checkpoint.header.MAX_HEADER_BYTES", 5000)
    with pytest.raises(CheckpointError, match="65,528 bytes, more than the 5,000"):
        build_header([(f"tensor{i}", "F32", (2, 2)) for i in range(90)], {})


# --- Opening a model folder: what is found, and where the tensors' bytes are ---


def test_a_single_file_is_opened_with_every_tensor_where_its_bytes_are(tiny_base: MakeBase):
    folder = tiny_base("qwen2")
    checkpoint = open_checkpoint(str(folder))
    assert not checkpoint.sharded
    assert checkpoint.shards == ("model.safetensors",)
    assert checkpoint.source == str(folder)
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.metadata == {"format": "pt"}
    data = (folder / "model.safetensors").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(checkpoint.tensors)
        for name, entry in checkpoint.tensors.items():
            tensor = file.get_tensor(name)
            assert tuple(tensor.shape) == entry.shape
            assert entry.dtype == "BF16"
            assert tensor.view(dtype=__import__("torch").uint8).numpy().tobytes() == data[entry.start : entry.end]
    assert checkpoint.num_bytes == sum(entry.num_bytes for entry in checkpoint.tensors.values())
