"""Outputs that are taken, forbidden or too small: refused, or undone, with nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import ExpansionError, StagingError
from blockexpand.expansion import expand, plan
from helpers import MakeBase, tree

Usage = namedtuple("Usage", "total used free")


def test_an_output_that_exists_is_refused_and_kept(tiny_base: MakeBase, tmp_path: Path):
    base, out = tiny_base("llama"), tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(StagingError, match=f"{out}"):
            expand(base, out, plan(base, 2), overwrite=overwrite)
    assert tree(tmp_path) == {"out/precious.txt": b"mine"}


def test_an_empty_folder_is_filled(tiny_base: MakeBase, tmp_path: Path):
    (tmp_path / "out").mkdir()
    expand(tiny_base("llama"), tmp_path / "out", plan(tiny_base("llama"), 2))
    assert (tmp_path / "out" / "blockexpand.json").is_file()


@pytest.mark.parametrize("output", ["base", "base/../base", "link", "base/deeper", "link/deeper/still", "."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_base_is_never_written_to(own_base: MakeBase, tmp_path: Path, output: str, overwrite: bool):
    base = own_base("llama")
    (base / "blockexpand.json").write_text("{}")  # so that only this check stands in the way
    (tmp_path / "blockexpand.json").write_text("{}")
    (tmp_path / "link").symlink_to(base)
    before = tree(tmp_path)
    with pytest.raises(ExpansionError) as raised:
        expand(base, tmp_path / output, plan(base, 2), overwrite=overwrite)
    assert str(tmp_path / output) in str(raised.value)
    assert tree(tmp_path) == before


def test_an_output_under_a_file_is_refused(tiny_base: MakeBase, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StagingError, match=r"file is a file, not a folder"):
        expand(tiny_base("llama"), tmp_path / "file" / "out", plan(tiny_base("llama"), 2))
    assert tree(tmp_path) == {"file": b"x"}


# --- no space ----------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ON_A_TINY_DISK = """
    import collections, os, shutil, sys
    from pathlib import Path
    from blockexpand.errors import StagingError
    from blockexpand.expansion import expand
    from blockexpand.expansion import plan
    base, disk, pretend = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "pretend"
    if pretend:
        Usage = collections.namedtuple("Usage", "total used free")
        shutil.disk_usage = lambda path: Usage(10**9, 0, 10**9)
    try:
        expand(base, disk / "out", plan(base, 2))
    except StagingError as error:
        print("refused:", error)
    print("left:", sorted(os.listdir(disk)))
"""


@pytest.mark.parametrize("check", ["pretend", "honest"])
def test_a_real_file_system_without_space(tiny_base: MakeBase, tmp_path: Path, check: str):
    """A tmpfs of 64 kB in a mount namespace of our own; once with the check of free space made to pass."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ON_A_TINY_DISK))
    command = f"mount -t tmpfs -o size=64k none {disk} && {sys.executable} {script} {tiny_base('llama')} {disk} {check}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command], capture_output=True, text=True
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    words = "no space left on the device while writing" if check == "pretend" else "the weights take 95,040 bytes"
    assert words in done.stdout
    assert done.stdout.endswith("left: []\n")


# --- interrupted -------------------------------------------------------------------------------------


def test_an_interruption_leaves_nothing(tiny_base: MakeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    base = tiny_base("llama")
    made = plan(base, 2)
    monkeypatch.setattr(os, "copy_file_range", interrupt)
    with pytest.raises(KeyboardInterrupt):
        expand(base, tmp_path / "new" / "folders" / "out", made)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("length", [240, 300])
def test_a_name_too_long_for_the_file_system_is_refused(tiny_base: MakeBase, tmp_path: Path, length: int):
    """240 characters are a legal name, but the hidden name beside it is longer."""
    with pytest.raises(StagingError, match=r"cannot write .*xxx: File name too long; choose another"):
        expand(tiny_base("llama"), tmp_path / ("x" * length), plan(tiny_base("llama"), 2))
    assert not any(tmp_path.iterdir())
