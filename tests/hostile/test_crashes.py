"""Killed, refused or cut short at every system call that writes: there is the older output, or the newer, or nothing.

The sweeps are `crash_points.py`, run without torch; here is what they have to have found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import crash_points
import pytest
import tracer

HERE = Path(__file__).parent
REASON = tracer.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no tracing of system calls: {REASON}")


def swept(scenario: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, HERE / "crash_points.py", scenario], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[scenario]


@pytest.mark.slow
def test_a_new_output_is_whole_or_not_there_wherever_the_run_is_killed_or_the_disk_is_full():
    found = swept("expand")
    num_calls = len(found["calls"])
    assert {"mkdir", "openat", "write", "copy_file_range", "ftruncate", "fsync", "rename"} <= set(found["calls"])
    assert num_calls > 60
    assert found["kills"] >= num_calls + 10  # before each call, and in the middle of those that write
    assert (found["older or nothing"], found["newer"]) == (found["kills"] - 1, 1)
    assert found["tidied"] == found["kills"]
    num_copies = found["calls"].count("copy_file_range")
    assert num_calls - num_copies < found["failed calls"] < num_calls  # a sample of the copies, which are all alike
    assert found["budgets"] > 50
    assert found["short writes"] > 10


@pytest.mark.slow
def test_an_older_output_stays_until_the_newer_one_takes_its_place_in_one_step():
    found = swept("overwrite")
    assert "exchange" in found["calls"]
    assert found["older or nothing"] + found["newer"] == found["kills"] == found["tidied"]
    assert found["newer"] > 5
    assert found["older or nothing"] > 50
    assert found["failed calls"] > 10


@pytest.mark.slow
def test_several_threads_that_write_make_no_difference():
    found = swept("overwrite in threads")
    assert found["older or nothing"] + found["newer"] == found["kills"] == found["tidied"] == len(found["calls"])
    assert found["older or nothing"] > 50


@pytest.mark.slow
def test_without_an_exchanging_rename_an_older_output_set_aside_is_put_back_by_the_next_run():
    found = swept("overwrite without exchange")
    assert "exchange" not in found["calls"]
    assert found["set aside"] == 1
    assert found["older or nothing"] + found["newer"] + 1 == found["kills"] == found["tidied"]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["plan", "plan over"])
def test_a_plan_is_whole_or_what_it_was(scenario: str):
    found = swept(scenario)
    assert (found["older or nothing"], found["newer"], found["kills"]) == (6, 1, 7)
    assert found["failed calls"] == 6
    assert found["budgets"] == 4


@pytest.mark.parametrize(
    "scenario", ["expand", "overwrite", "overwrite without exchange", "overwrite in threads", "plan", "plan over"]
)
def test_everything_is_flushed_before_it_gets_its_name_and_the_name_before_the_older_goes(
    scenario: str, tmp_path: Path
):
    sweep = crash_points.Sweep(dict(crash_points.scenarios(tmp_path))[scenario])
    assert sweep.unsynced == []
    # And the check would see it if one flush were missing. (JSON is staged by itself, too, and so flushed twice.)
    if scenario.startswith("plan"):
        assert sweep.needed == ["place", "plan.json (hidden)"]
    else:
        shards = [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
        assert {"place", "out (hidden)", "extra", "notes.txt", "tokenizer.json", *shards} <= set(sweep.needed)
        assert scenario != "expand" or {"new", "folders"} <= set(sweep.needed)


def test_a_writer_that_stages_nothing_is_caught():
    done = subprocess.run([sys.executable, HERE / "crash_points.py", "naive"], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"AssertionError: killed at \d+", done.stderr)


ONE_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crash_points
scenario = dict(crash_points.scenarios(Path(sys.argv[2])))["overwrite"]
scenario.reset()
(scenario.place.parent / "begin").mkdir()
scenario.work()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.slow
def test_strace_sees_the_same_calls(tmp_path: Path):
    """The tracer against one that is not ours."""
    ours = crash_points.Sweep(dict(crash_points.scenarios(tmp_path / "ours"))["overwrite"]).calls
    log, names = tmp_path / "log", ",".join(tracer.CALLS.values())
    script = [sys.executable, "-c", ONE_RUN, HERE, tmp_path / "theirs"]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", f"trace={names}", "-o", log, *script],
        capture_output=True,
        text=True,
    )
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if f'"{tmp_path}/theirs/begin"' in line or "/begin" in line)
    theirs = [name for line in lines[begin + 1 :] if (name := _changing(line, str(tmp_path / "theirs" / "place")))]
    assert theirs == [call.name for call in ours]


def _changing(line: str, place: str) -> str | None:
    """What the tracer calls a line of strace's log, or None where nothing below `place` is changed."""
    match = re.match(r"\d+ +(\w+)\((.*)", line)
    if match is None:
        return None
    name, rest = match[1], match[2]
    if place not in rest or (name in ("open", "openat") and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", rest)):
        return None
    if name in ("mmap", "ioctl"):
        return None
    if name == "copy_file_range" and place not in rest.split(", ")[2]:
        return None
    if name == "unlinkat" and "AT_REMOVEDIR" in rest:
        return "rmdir"
    return "exchange" if "RENAME_EXCHANGE" in rest else name


RACE = """
import os, sys
from blockexpand import staging
from blockexpand.errors import StagingError
from blockexpand.expansion import expand
from blockexpand.expansion import plan
flush = staging._flush_tree
def wait_and_flush(folder):
    print("ready", flush=True)
    sys.stdin.readline()
    flush(folder)
staging._flush_tree = wait_and_flush
base, out, blocks, overwrite = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "overwrite"
try:
    expand(base, out, plan(base, blocks), overwrite=overwrite)
    print("won", flush=True)
except StagingError as error:
    print("lost", error, flush=True)
"""


@pytest.mark.parametrize("how", ["new", "overwrite"])
def test_of_two_runs_to_one_output_one_wins_and_the_other_is_told(tmp_path: Path, how: str):
    base, out = crash_points.make_base(tmp_path / "base"), tmp_path / "out"
    made = {n: crash_points.plan(base, n) for n in (1, 2)}
    for n in (1, 2):
        crash_points.expand(base, tmp_path / f"alone-{n}", made[n])
    if how == "overwrite":
        crash_points.expand(base, out, crash_points.plan(base, 1, placement="prefix"))
    command = [sys.executable, "-c", RACE, base, out]
    runs = [
        subprocess.Popen([*command, str(n), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in (1, 2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline().startswith("ready")  # both have written everything and only the rename is left
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate()[0].strip() for run in runs]
    assert sorted(words.split()[0] for words in said) == ["lost", "won"], said
    loser = next(words for words in said if words.startswith("lost"))
    assert f"{out} was written by another process while this one worked" in loser
    winner = 1 + [words == "won" for words in said].index(True)
    assert crash_points.tree(out) == crash_points.tree(tmp_path / f"alone-{winner}")
    assert sorted(os.listdir(tmp_path)) == ["alone-1", "alone-2", "base", "out"]
