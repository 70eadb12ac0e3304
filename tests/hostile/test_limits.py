"""Input made to take all memory or all time, and places made to be in the way: refused in a line, or served.

The bases are made without torch, so that a limit on a process's memory can be a tight one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_points import make_base

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import BlockexpandError, CheckpointError, RecordError
from blockexpand.expansion import expand, plan
from blockexpand.records import MAX_ITEMS, MAX_TEXT_BYTES, parse_json
from blockexpand.records.plan import read_plan
from helpers import tree

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"

WITH_LITTLE_MEMORY = """
    import resource, sys
    resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
    from pathlib import Path
    from blockexpand.checkpoint import open_checkpoint, read_header
    from blockexpand.errors import BlockexpandError
    from blockexpand.records.plan import read_plan
    read = {"header": read_header, "folder": open_checkpoint, "plan": read_plan}[sys.argv[1]]
    try:
        read(Path(sys.argv[2]))
    except BlockexpandError as error:
        print(error)
"""


def read_with_little_memory(what: str, path: Path) -> str:
    """The line with which it is refused in a process that may take 400 MB of addresses."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITH_LITTLE_MEMORY), what, path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout


def bomb(piece: bytes, opening: bytes, closing: bytes) -> bytes:
    """A fifth of what a header may take, of pieces that take far more in memory."""
    return opening + piece * (20_000_000 // len(piece)) + piece[:-1] + closing


BOMBS = {
    "lists": bomb(b"[],", b'{"a":[', b"]}"),
    "mappings": bomb(b"{},", b'{"a":[', b"]}"),
    "a shape": bomb(b"9,", b'{"a":{"dtype":"U8","data_offsets":[0,8],"shape":[', b"]}}"),
    "depth": b'{"a":' + b"[" * 20_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_would_take_all_memory_is_refused_before_it_does(tmp_path: Path, name: str):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as stream:
        stream.write(len(BOMBS[name]).to_bytes(8, "little"))
        stream.write(BOMBS[name])
        stream.truncate(50_000_000)
    line = read_with_little_memory("header", path)
    assert f"holds some {BOMBS[name].count(b',') + BOMBS[name].count(b'[') + BOMBS[name].count(b'{'):,} items" in line
    assert "expected at most 4,000,000" in line


def test_an_index_of_ten_million_entries_is_refused_unread(tmp_path: Path):
    base = make_base(tmp_path / "base")
    with open(base / INDEX, "wb") as stream:
        stream.write(b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
        stream.truncate(10_000_000 * 40)  # what so many entries take at the least; spaces or not, nobody looks
    line = read_with_little_memory("folder", base)
    assert f"{INDEX} is 400,000,000 bytes long; expected at most 100,000,000" in line


def test_a_config_and_a_plan_of_any_size_are_refused_unread(tmp_path: Path):
    base = make_base(tmp_path / "base")
    for path, what in ((base / "config.json", "folder"), (tmp_path / "plan.json", "plan")):
        with open(path, "wb") as stream:
            stream.truncate(1 << 40)
        line = read_with_little_memory(what, base if what == "folder" else path)
        assert f"{path} is 1,099,511,627,776 bytes long; expected at most {MAX_TEXT_BYTES:,}" in line


def test_the_limits_are_far_above_what_there_is():
    """DeepSeek-V3 has 92 thousand tensors, the index of which takes 9 MB."""
    entries = ",".join(
        f'"model.layers.{i}.mlp.experts.0.down_proj.weight":"model-1.safetensors"' for i in range(100_000)
    )
    assert len(parse_json('{"weight_map":{' + entries + "}}", "index")["weight_map"]) == 100_000
    with pytest.raises(RecordError, match=r"x holds some 4,000,002 items"):
        parse_json("[" + "1," * MAX_ITEMS + "1,1]", "x")


# --- things that are no files ---------------------------------------------------------------------------


def pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(target))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pipe(SHARD), f"{SHARD} that .* is missing"),
        (pipe(INDEX), "has only"),
        (pipe("config.json"), "has no config.json"),
        (link(SHARD, "/dev/zero"), f"{SHARD} that .* is missing"),
        (link(SHARD, "nowhere"), f"{SHARD} that .* is missing"),
        (link(SHARD, SHARD), f"{SHARD} that .* is missing"),
        (link("config.json", "/dev/stdin"), "has no config.json"),
        (link("tokenizer.json", "/etc/passwd"), r"tokenizer.json leads to /etc/passwd, outside of the model's folder"),
        (link("tokenizer.json", "../plan.json"), r"tokenizer.json leads to .*/plan.json, outside"),
    ],
)
def test_pipes_devices_and_links_in_a_base_are_refused_without_waiting(tmp_path: Path, change: Any, words: str):
    base = make_base(tmp_path / "base")
    made = plan(base, 2)
    made.save(tmp_path / "plan.json")
    change(base)
    signal.alarm(20)
    try:
        with pytest.raises(BlockexpandError, match=words) as raised:
            expand(base, tmp_path / "out", made)
    finally:
        signal.alarm(0)
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["base", "plan.json"]


def test_a_pipe_in_place_of_a_plan_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "plan.json")
    signal.alarm(20)
    try:
        for path in (tmp_path / "plan.json", "/dev/zero"):
            with pytest.raises(RecordError, match=f"{path} is a pipe or a device; expected a plain file"):
                read_plan(path)
    finally:
        signal.alarm(0)


def test_shards_whose_names_differ_in_case_are_two_files_or_a_tensor_twice(tmp_path: Path):
    """On a file system that does not tell them apart, both names are one file: then each tensor is there twice."""
    base = make_base(tmp_path / "base")
    shutil.copy(base / SHARD, base / SHARD.upper().replace("SAFETENSORS", "safetensors"))
    index = json.loads((base / INDEX).read_text())
    held = [name for name, file in index["weight_map"].items() if file == SHARD]
    index["weight_map"][held[0]] = SHARD.upper().replace("SAFETENSORS", "safetensors")
    (base / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is in both MODEL-00002-OF-00002\.safetensors and model-00002"):
        open_checkpoint(base)


# --- where base and output are --------------------------------------------------------------------------


def test_base_and_output_on_two_file_systems(tmp_path: Path):
    other = Path("/dev/shm")
    if not other.is_dir() or os.stat(other).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system here to write to")
    base, away = make_base(tmp_path / "base"), other / f"blockexpand-test-{os.getpid()}"
    expand(base, tmp_path / "out", plan(base, 2))
    try:
        expand(base, away / "there", plan(base, 2))
        there = tree(away / "there")
        shutil.copytree(base, away / "base")
        expand(away / "base", tmp_path / "back", plan(base, 2))
    finally:
        shutil.rmtree(away)
    assert there == tree(tmp_path / "out")
    assert tree(tmp_path / "back") == there


ON_A_READ_ONLY_BASE = """
    import sys
    from blockexpand.errors import StagingError
    from blockexpand.expansion import expand
    from blockexpand.expansion import plan
    base, out = sys.argv[1:]
    expand(base, out, plan(base, 2))
    try:
        open(base + "/probe", "w")
    except OSError as error:
        print("read-only:", error.errno)
    try:
        expand(base, base + "-of-it", plan(base, 2))
        print("written")
    except StagingError as error:
        print(error)
"""


def test_a_base_on_a_read_only_file_system(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    base = make_base(tmp_path / "disk" / "base")
    expand(base, tmp_path / "usual", plan(base, 2))
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    script.write_text(textwrap.dedent(ON_A_READ_ONLY_BASE))
    mount = f"mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}"
    command = f"{mount} && {sys.executable} {script} {base} {tmp_path / 'out'}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command], capture_output=True, text=True
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read-only: 30\n")
    assert f"{base}-of-it is on a read-only file system; choose another output folder" in done.stdout
    assert tree(tmp_path / "out") == tree(tmp_path / "usual")


def test_a_hub_id_from_the_command_line_with_the_network_off(tmp_path: Path):
    """A process of its own, so that HF_HUB_OFFLINE is what it is for a user."""
    repo, commit = tmp_path / "hub" / "models--org--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(make_base(tmp_path / "base"), repo / "blobs")
    snapshot = repo / "snapshots" / commit
    for file in ("config.json", INDEX, "tokenizer.json", SHARD, SHARD.replace("00002-", "00001-"), "extra/notes.txt"):
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(os.path.relpath(repo / "blobs" / file, (snapshot / file).parent))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}

    def run(source: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "blockexpand", "expand", source, tmp_path / "out", "--blocks", "2"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run("org/tiny")
    assert done.returncode == 0, done.stderr
    expand(tmp_path / "base", tmp_path / "usual", plan(tmp_path / "base", 2))
    found, usual = tree(tmp_path / "out"), tree(tmp_path / "usual")
    record = found.pop("blockexpand.json")
    usual.pop("blockexpand.json")
    assert found == usual
    assert json.loads(record)["plan"]["base"]["hub"] == f"org/tiny@{commit}"
    done = run("org/other")
    assert done.returncode == 2
    assert "org/other is neither a folder nor in the local hub cache" in done.stderr.replace("\n", " ")
