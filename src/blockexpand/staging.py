"""Outputs that appear whole or not at all.

A folder or file is written beside its place under a hidden name, flushed to the disk, and renamed
last. An error, Ctrl-C or a full disk leaves nothing; a power cut leaves at most a hidden `.partial`
folder that nothing of ours reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from blockexpand.errors import StagingError

RECORD_NAME = "blockexpand.json"
"""The file every folder of ours carries; without it `--overwrite` does not touch a folder."""


def flush_folder(path: Path) -> None:
    """Make the folder's entries durable (a rename is not, until its folder is)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def full_disk_is_an_error(path: Path, kept: str = "Nothing was left behind") -> Generator[None]:
    """Turn "no space left", quota and read-only errors into one line that says where and how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder = next(p for p in (path, *path.parents) if p.exists())
            free = shutil.disk_usage(folder).free
            raise StagingError(
                f"no space left on the device while writing {path}: {free:,} bytes free; free some space or choose "
                f"another output folder. {kept}"
            ) from error
        if error.errno == errno.EROFS:
            raise StagingError(f"{path} is on a read-only file system; choose another output folder") from error
        raise


@contextlib.contextmanager
def staged_file(path: Path) -> Generator[BinaryIO]:
    """A binary stream whose content becomes `path` when the block ends without an error."""
    if path.is_dir():
        raise StagingError(f"{path} is a folder; expected the path of a file to write")
    temporary = _beside(path)
    with full_disk_is_an_error(path), parent_of(path):
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def parent_of(path: Path) -> Generator[None]:
    """The folders above `path`; those that were made for it go again when the block ends with an error."""
    made = [folder for folder in path.parents if not folder.exists()]
    _make_parent(path)
    done = False
    try:
        yield
        done = True
    finally:
        for folder in made if not done else ():
            # Somebody else may have put something there meanwhile.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StagingError(f"cannot write {path}: {path.parent} is a file, not a folder") from None
    except PermissionError:
        raise StagingError(f"cannot write {path}: permission denied for {path.parent}") from None
    except OSError as error:
        raise _cannot(path, error) from error


def _cannot(path: Path, error: OSError) -> OSError | StagingError:
    """The error in words, unless `full_disk_is_an_error` has better ones."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return error
    return StagingError(f"cannot write {path}: {error.strerror}; choose another output folder")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output that is taken, before any work is done.

    Raises:
        StagingError: it exists and `overwrite` is off, or it is not a folder of ours.
    """
    try:
        taken = path.exists() or path.is_symlink()
    except OSError as error:
        raise _cannot(path, error) from error
    if not taken:
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    if not overwrite:
        raise StagingError(f"the output {path} already exists; choose another name or add --overwrite")
    if not path.is_dir() or path.is_symlink() or not (path / RECORD_NAME).is_file():
        raise StagingError(
            f"refusing to overwrite {path}: it has no {RECORD_NAME}, so blockexpand did not make it; remove it "
            "yourself or choose another name"
        )


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool = False) -> Generator[Path]:
    """A new folder that becomes `path` when the block ends without an error.

    Every file in it is flushed to the disk before the rename, so what carries the name is whole.

    Raises:
        StagingError: the output is taken, cannot be written, or the disk is full.
    """
    check_output(path, overwrite)
    temporary = _beside(path)
    with full_disk_is_an_error(path), parent_of(path):
        try:
            temporary.mkdir()
        except OSError as error:
            raise _cannot(path, error) from error
        try:
            yield temporary
            _flush_tree(temporary)
            _swap_in(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(folder: Path, path: Path) -> None:
    """Make a finished folder durable and let it become `path`, in the place of an older one.

    For work that takes hours, is done in a folder that outlives errors, and so cannot be a `staged_folder`.
    """
    _flush_tree(folder)
    _swap_in(folder, path)


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        flush_folder(Path(parent))


def _swap_in(temporary: Path, path: Path) -> None:
    """Rename into place; an older folder is moved aside first and removed last."""
    aside = _beside(path) if path.exists() else None
    if aside is not None:
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        if aside is not None:
            os.rename(aside, path)
        raise
    flush_folder(path.parent)
    if aside is not None:
        shutil.rmtree(aside)
