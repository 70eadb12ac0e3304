"""Outputs that appear whole or not at all.

A folder or file is written beside its place under a hidden name, flushed to the disk, and renamed last. An
error, Ctrl-C or a full disk leaves nothing. A kill or a power cut leaves at most hidden folders that nothing of
ours reads; the next run to the same output removes them. An older folder and the new one change places in one
step where the file system can do that; where it cannot (NFS, say), a power cut at the wrong moment leaves the
older one under a hidden name, and the next run puts it back. Of two runs to one output the first to end wins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from blockexpand.errors import StagingError

RECORD_NAME = "blockexpand.json"
"""The file every folder of ours carries; without it `--overwrite` does not touch a folder."""
PACK_NAME = "pack.json"
"""What a pack carries in its place."""


def flush_folder(path: Path) -> None:
    """Make the folder's entries durable (a rename is not, until its folder is)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path, kind: str = "partial") -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


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
        if error.errno in (errno.EIO, errno.EFBIG):
            raise StagingError(
                f"{path} could not be written: {os.strerror(error.errno)}; expected a disk that takes what is written; "
                f"check the disk, or choose another output folder. {kept}"
            ) from error
        raise


@contextlib.contextmanager
def staged_file(path: Path) -> Generator[BinaryIO]:
    """A binary stream whose content becomes `path` when the block ends without an error."""
    if path.is_dir():
        raise StagingError(f"{path} is a folder; expected the path of a file to write")
    temporary = _beside(path)
    with full_disk_is_an_error(path), parent_of(path):
        done = False
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            done = True
            try:
                flush_folder(path.parent)
            except OSError as error:
                raise StagingError(
                    f"{path} was written whole, but its folder could not be flushed to the disk: {error.strerror}; "
                    "expected it to outlive a power cut; free some space or check the disk, and write it again"
                ) from error
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    temporary.unlink()


@contextlib.contextmanager
def parent_of(path: Path) -> Generator[None]:
    """The folders above `path`; those that were made for it go again when the block ends with an error."""
    made = [folder for folder in path.parents if not folder.exists()]
    done = False
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StagingError(f"cannot write {path}: {path.parent} is a file, not a folder") from None
        except OSError as error:
            raise _cannot(path, error) from error
        for folder in made:
            flush_folder(folder.parent)
        yield
        done = True
    finally:
        for folder in made if not done else ():
            # Somebody else may have put something there meanwhile.
            with contextlib.suppress(OSError):
                folder.rmdir()


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
    if not path.is_dir() or path.is_symlink() or not any((path / n).is_file() for n in (RECORD_NAME, PACK_NAME)):
        raise StagingError(
            f"refusing to overwrite {path}: it has no {RECORD_NAME}, so blockexpand did not make it; remove it "
            "yourself or choose another name"
        )


@contextlib.contextmanager
def staged_folder(path: Path, overwrite: bool = False) -> Generator[Path]:
    """A new folder that becomes `path` when the block ends without an error.

    Every file in it is flushed to the disk before the rename, so what carries the name is whole.

    Raises:
        StagingError: the output is taken (at the start, or by another run at the end), cannot be written, or the
            disk is full.
    """
    _tidy(path)
    check_output(path, overwrite)
    before = _identity(path)
    with full_disk_is_an_error(path), parent_of(path):
        temporary, handle = _own_folder(path)
        try:
            yield temporary
            _flush_tree(temporary)
            _swap_in(temporary, path, before)
        finally:
            # Once they have changed places, this is the older folder.
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(handle)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder it is, whatever it holds; None when there is none."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[bool]:
    """Whether we hold the lock of a folder inside the block; some network file systems have none."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how)
    except OSError:
        return False
    return True


def _own_folder(path: Path) -> tuple[Path, int]:
    """A new hidden folder beside `path`, and a handle that locks it as long as we live: it is somebody's."""
    temporary = _beside(path)
    try:
        with _locked(path.parent):
            temporary.mkdir()
            handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
            _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _cannot(path, error) from error
    return temporary, handle


def _tidy(path: Path) -> None:
    """Remove what runs to this output left that were killed; put an older output back that such a run had moved."""
    with contextlib.suppress(OSError), _locked(path.parent) as held:
        for name in sorted(os.listdir(path.parent)) if held else ():
            left = path.with_name(name)
            if _is_left(name, path, "aside") and _identity(path) is None:
                os.rename(left, path)
                flush_folder(path.parent)
            elif _is_left(name, path, "aside") or _is_left(name, path, "partial"):
                _remove_unowned(left)


def _is_left(name: str, path: Path, kind: str) -> bool:
    return re.fullmatch(rf"\.{re.escape(path.name)}\.{kind}-[0-9]+-[0-9a-f]{{8}}", name) is not None


def _remove_unowned(folder: Path) -> None:
    """Remove a hidden folder, unless a living process holds its lock."""
    if not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def publish_folder(folder: Path, path: Path, overwrite: bool = False) -> None:
    """Make a finished folder durable and let it become `path`; an older one is at `folder` then.

    For work that takes hours, is done in a folder that outlives errors, and so cannot be a `staged_folder`.

    Raises:
        StagingError: the output is taken.
    """
    _flush_tree(folder)
    check_output(path, overwrite)
    _swap_in(folder, path, _identity(path))


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        flush_folder(Path(parent))


def _swap_in(temporary: Path, path: Path, before: tuple[int, int] | None) -> None:
    """Rename into place, unless something else stands there than at the start; an older folder takes our name."""
    aside = None
    with _locked(path.parent):
        if _identity(path) != before:
            raise _taken_meanwhile(path)
        older = before is not None and any(path.iterdir())
        if not older:
            try:
                os.rename(temporary, path)
            except OSError as error:
                raise (_taken_meanwhile(path) if error.errno in (errno.EEXIST, errno.ENOTEMPTY) else error) from None
        elif not _exchange(temporary, path):
            aside = _beside(path, "aside")
            _replace(temporary, path, aside)
        try:
            flush_folder(path.parent)
        except OSError:
            # What is not on the disk is not done.
            if older and aside is None:
                _exchange(temporary, path)
            else:
                os.rename(path, temporary)
            if aside is not None:
                os.rename(aside, path)
            raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _taken_meanwhile(path: Path) -> StagingError:
    return StagingError(
        f"{path} was written by another process while this one worked; expected to be the only one; theirs is kept: "
        "use it, or choose another name and run again. Nothing of this run was left behind"
    )


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # both of linux/fcntl.h and linux/fs.h
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
"""What kernels and file systems say that cannot (man 2 renameat2), and filters of container runtimes."""


def _exchange(one: Path, two: Path) -> bool:
    """Let two folders change names in one step; False where that cannot be done."""
    import ctypes  # 10 ms, and only --overwrite needs it

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:  # not in every C library
        return False
    names = os.fsencode(one), os.fsencode(two)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(two))


def _replace(temporary: Path, path: Path, aside: Path) -> None:
    """The same in two steps; between them, the older folder has only a hidden name, which `_tidy` knows."""
    os.rename(path, aside)
    done = False
    try:
        os.rename(temporary, path)
        done = True
    finally:
        if not done:
            os.rename(aside, path)
