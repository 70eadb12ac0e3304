"""Killed, or on a full disk, at every change of files: there is the older output, or the newer, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import crash_points
import pytest
from crash_points import Change, Scenario

from blockexpand.errors import BlockexpandError
from helpers import tree

OURS = [
    "expand",
    "overwrite",
    pytest.param("overwrite without exchange", marks=pytest.mark.slow),
    "plan over",
    pytest.param("plan", marks=pytest.mark.slow),
]


@pytest.fixture
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Scenario:
    return crash_points.scenarios(tmp_path)[request.param]


def chosen(changes: list[Change]) -> list[int]:
    """The numbers of all changes, of the many copies only every sixth."""
    return [number for number, (name, _) in enumerate(changes) if name != "copy" or number % 6 == 0]


def again(scenario: Scenario, seen: dict[str, bytes], newer: dict[str, bytes]) -> None:
    """The next run to the same place: it ends whole, or says that there is a whole one; nothing hidden stays."""
    exchange = crash_points.staging._exchange
    try:
        scenario.work()
    except BlockexpandError as error:
        if "already exists" not in str(error):
            raise
        assert seen == newer
    finally:
        crash_points.staging._exchange = exchange
    assert scenario.visible() == newer
    if "/" in next(iter(newer)):  # a folder
        assert scenario.visible() == tree(scenario.place), "something hidden stayed"


def killed(scenario: Scenario) -> Counter[str]:
    """Kill before each change, and in the middle of each copy; what was seen then."""
    whole = scenario.run()
    assert (whole.error, whole.killed) == (None, False)
    newer, found = tree(scenario.place), Counter[str]()
    points = [(number, "kill") for number in chosen(whole.changes)]
    points += [(number, "half") for number in chosen(whole.changes) if whole.changes[number][0] == "copy"]
    for number, how in points:
        outcome = scenario.run(lambda n, _, at=number, act=how: act if n == at else None)
        assert outcome.killed, f"{number} was not reached: {outcome.error}"
        seen = scenario.visible()
        kind = "older" if seen == scenario.older else "newer" if seen == newer else "nothing" if not seen else "half"
        assert kind != "half", f"killed at {number} {whole.changes[number]}: {sorted(seen)}"
        found[kind] += 1
        again(scenario, seen, newer)
    return found


@pytest.mark.parametrize("scenario", OURS, indirect=True)
def test_an_output_is_whole_or_not_there_wherever_the_run_is_killed(scenario: Scenario, request: pytest.FixtureRequest):
    found = killed(scenario)
    # Where two names cannot be exchanged in one step, the older output has no name between two renames, and comes back.
    assert found["nothing"] == (1 if "without exchange" in request.node.name else 0)
    assert found["older"] > 3
    assert found["newer"] > 0


@pytest.mark.parametrize("scenario", OURS, indirect=True)
def test_a_disk_that_is_full_at_any_change_leaves_what_was_there(scenario: Scenario):
    whole = scenario.run()
    newer = tree(scenario.place)
    for number in chosen(whole.changes):
        outcome = scenario.run(lambda n, _, at=number: "fail" if n == at else None)
        where = f"{number} {whole.changes[number]}: {outcome.error}"
        if outcome.error is None:
            # Only cleaning up may fail without a word: what is left then, the next run removes.
            assert scenario.visible() == newer, where
        elif "was written whole" in outcome.error:
            # A file that has its name, though not for sure; inside a folder that is then given up, it goes with it.
            assert "No space left on device" in outcome.error
            assert tree(scenario.place) == (scenario.older if "partial" in outcome.error else newer), where
        else:
            assert "no space left" in outcome.error, where
            assert "Nothing was left behind" in outcome.error
            assert tree(scenario.place) == scenario.older, where


def unsafe(changes: list[Change], scenario: Scenario) -> list[str]:
    """What a power cut could spoil: files that were not flushed after their last change and before their folder got
    its name, and names whose folder was not flushed after."""
    output, wrong = scenario.place / scenario.output, []
    shown = next(n for n, (name, path) in enumerate(changes) if name in ("rename", "exchange") and path == str(output))
    flushed = {path: n for n, (name, path) in enumerate(changes) if name == "fsync" and n < shown}
    for number, (name, path) in enumerate(changes[:shown]):
        own, folder = os.path.basename(path), os.path.dirname(path)
        if name in ("open", "copy", "rename") and not own.startswith(".") and "/." in path:
            wrong += [path] if flushed.get(path, -1) < number else []
        if name == "mkdir" and not own.startswith(".") and path != str(scenario.place):
            wrong += [path] if flushed.get(folder, -1) < number else []
    after = [path for name, path in changes[shown + 1 :] if name == "fsync"]
    return wrong if after[:1] == [str(output.parent)] else [*wrong, str(output.parent)]


@pytest.mark.parametrize("scenario", OURS[:4], indirect=True)
def test_everything_is_flushed_before_it_gets_its_name_and_the_name_right_after(scenario: Scenario):
    changes = [c for c in scenario.run().changes if not (c[0] == "rename" and "aside" in c[1])]
    assert unsafe(changes, scenario) == []
    for name, path in changes:  # and the check sees it if a flush is missing
        if name == "fsync" and path.endswith((".safetensors", "notes.txt", "/place")):
            assert unsafe([change for change in changes if change != (name, path)], scenario), path


@pytest.mark.parametrize("scenario", ["naive"], indirect=True)
def test_a_writer_that_stages_nothing_is_caught(scenario: Scenario):
    with pytest.raises(AssertionError, match=r"killed at \d+"):
        killed(scenario)


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
