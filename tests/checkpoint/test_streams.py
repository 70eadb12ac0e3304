"""Bytes are read and moved whole, in the kernel or by hand, however few a call takes at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from blockexpand.checkpoint import streams
from blockexpand.checkpoint.streams import chunks, move, read_whole
from blockexpand.errors import CheckpointError

DATA = bytes(i * 7 % 251 for i in range(50_000))
START, END, TO = 123, 40_124, 4567


def moved(tmp_path: Path, size: int = len(DATA)) -> bytes:
    (tmp_path / "source").write_bytes(DATA[:size])
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "w+b") as target:
        target.truncate(60_000)
        move(source.fileno(), START, END, target.fileno(), TO, "f")
        target.seek(0)
        return target.read()


def check(tmp_path: Path) -> None:
    assert moved(tmp_path) == bytes(TO) + DATA[START:END] + bytes(60_000 - TO - (END - START))


def test_a_range_is_moved_and_nothing_else_is_touched(tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.parametrize("number", ["EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "EPERM", "ETXTBSY"])
def test_where_the_kernel_cannot_we_read_and_write(
    tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(streams, "_BUFFER_BYTES", 1000)
    check(tmp_path)


def test_where_the_kernel_stops_half_way_we_go_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.copy_file_range, []

    def half(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > 2:
            raise OSError(errno.EXDEV, "no more")
        return real(source, target, min(count, 7000), *offsets)

    monkeypatch.setattr(os, "copy_file_range", half)
    check(tmp_path)
    assert len(calls) == 3


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that take less than they are asked for, as Linux does at 2 GiB."""
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:999]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)
    check(tmp_path)
    into = bytearray(END - START)
    with open(tmp_path / "source", "rb") as source:
        read_whole(source.fileno(), memoryview(into), START, "f")
        assert into == DATA[START:END]
        assert b"".join(map(bytes, chunks(source.fileno(), START, END, "f"))) == DATA[START:END]


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="full"):
        moved(tmp_path)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrank_is_refused(tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(CheckpointError, match=r"f ended at byte 20,000 .* 20,124 more"):
        moved(tmp_path, size=20_000)
