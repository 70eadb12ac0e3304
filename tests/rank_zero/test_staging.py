"""Staging: what carries a name is whole, and what failed leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from blockexpand.errors import StagingError
from blockexpand.staging import RECORD_NAME, check_output, full_disk_is_an_error, staged_file, staged_folder


def test_a_folder_appears_when_it_is_done(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with staged_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not out.exists()
    assert (out / "sub" / "x").read_text() == "1"
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_failed_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_older_folder_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_folder(out) as folder:
        (folder / RECORD_NAME).write_text("{}")
        (folder / "old").write_text("")
    with pytest.raises(ValueError, match="stop"), staged_folder(out, overwrite=True) as folder:
        raise ValueError("stop")
    assert (out / "old").exists()
    with staged_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("")
    assert os.listdir(out) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("")
    assert os.listdir(tmp_path / "out") == ["x"]


def test_outputs_that_are_taken_are_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    with pytest.raises(StagingError, match="taken already exists; choose another name or add --overwrite"):
        check_output(taken)
    with pytest.raises(StagingError, match=r"refusing to overwrite .*taken: it has no blockexpand.json"):
        check_output(taken, overwrite=True)
    assert (taken / "mine").read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(taken)
    (taken / RECORD_NAME).write_text("{}")
    with pytest.raises(StagingError, match="refusing to overwrite .*link"):
        check_output(link, overwrite=True)


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match="file is a file, not a folder"), staged_file(tmp_path / "file" / "x"):
        pass
    with pytest.raises(StagingError, match="is a folder; expected the path of a file"), staged_file(tmp_path):
        pass


def test_a_file_appears_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), staged_file(path) as stream:
        stream.write(b"half")
        raise ValueError("stop")
    assert path.read_bytes() == b"old"
    with staged_file(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left on the device while writing"), (errno.EROFS, "is on a read-only file system")],
)
def test_a_full_or_read_only_disk_is_one_line(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StagingError, match=words), full_disk_is_an_error(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), full_disk_is_an_error(tmp_path / "out"):
        raise OSError(errno.EACCES, "no")


def test_the_real_full_device_is_one_line() -> None:
    """/dev/full fails every write with "no space left", which nothing here pretends."""
    with pytest.raises(StagingError, match="no space left"), full_disk_is_an_error(Path("/dev/full")):
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"x")
