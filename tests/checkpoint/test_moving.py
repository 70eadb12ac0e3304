"""Bytes move whole, in the kernel or by hand."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from blockexpand.checkpoint import moving
from blockexpand.checkpoint.moving import Range, move
from blockexpand.errors import CheckpointError

DATA = bytes(i * 7 % 251 for i in range(50_000))


def run(tmp_path: Path, piece: Range, size: int = len(DATA)) -> tuple[bytes, list[float]]:
    (tmp_path / "source").write_bytes(DATA[:size])
    done: list[float] = []
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "w+b") as target:
        target.truncate(60_000)
        move(source.fileno(), target.fileno(), piece, done.append)
        target.seek(0)
        return target.read(), done


PIECE = Range(file="f", source=123, target=4567, num_bytes=40_001)


def check(tmp_path: Path) -> list[float]:
    written, done = run(tmp_path, PIECE)
    assert written[4567 : 4567 + 40_001] == DATA[123 : 123 + 40_001]
    assert not any(written[:4567])
    assert not any(written[4567 + 40_001 :])
    assert sum(done) == 40_001
    return done


def test_a_range_is_moved_and_nothing_else_is_touched(tmp_path: Path):
    assert check(tmp_path) == [40_001]


@pytest.mark.parametrize("number", ["EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "EPERM", "ETXTBSY"])
def test_where_the_kernel_cannot_we_read_and_write(tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any) -> int:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(moving, "_BUFFER_BYTES", 1000)
    assert len(check(tmp_path)) == 41


def test_where_the_kernel_stops_half_way_we_go_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = os.copy_file_range, []

    def half(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > 2:
            raise OSError(errno.EXDEV, "no more")
        return real(source, target, min(count, 7000), *offsets)

    monkeypatch.setattr(os, "copy_file_range", half)
    assert check(tmp_path) == [7000, 7000, 26_001]


def test_where_the_kernel_says_nothing_moved_reading_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    assert sum(check(tmp_path)) == 40_001


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:999]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    check(tmp_path)


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="full"):
        run(tmp_path, PIECE)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrank_is_refused(tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch):
    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(CheckpointError, match=r"f ended at byte 20,000 .* expected 20,124 more"):
        run(tmp_path, PIECE, size=20_000)
