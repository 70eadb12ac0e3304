"""Runs: all tasks at all budgets, success rates, going on after a stop or a kill."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import binomtest

from blockexpand.agents import Cast, make_puzzles, run_agent
from blockexpand.errors import AgentError, Interrupted, StagingError
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import AgentSettings, Opposite, Task, read_agent
from blockexpand.records.intervals import wilson
from players import PlainTools, Script, Scripted, solver

SETTINGS = AgentSettings(speaker=Opposite(model="m"), budgets=(1, 2, 3))
PUZZLES = make_puzzles(12)
CODE_TASK = Task(set="mbpp", id="1", prompt="Write f.", scoring="code", reference="assert f() == 1")


def by_prompt(tasks: Sequence[Task]) -> dict[str, Task]:
    return {task.prompt: task for task in tasks}


def finish(folder: Path, script: Script | None = None, resume: bool = False, at_once: int = 5) -> Scripted:
    speaker = Scripted(script or solver(by_prompt(PUZZLES)))
    run_agent(Cast(speaker=speaker, tools=PlainTools(), at_once=at_once), PUZZLES, SETTINGS, folder, resume)
    return speaker


def words_of(folder: Path) -> list[dict]:
    """The episodes without their times."""
    found = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    for episode in found:
        for turn in episode["turns"]:
            del turn["seconds"], turn["tool_seconds"]
    return found


def test_an_agent_that_runs_code_first_needs_two_turns(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    run = read_agent(tmp_path / "run")
    assert [(r.budget, r.num_solved, r.num_tasks, r.num_errors) for r in run.record.rates] == [
        (1, 0, 12, 0), (2, 12, 12, 0), (3, 12, 12, 0),
    ]  # fmt: skip
    assert run.record.ends == {"1": {"turns": 12}, "2": {"solved": 12}, "3": {"solved": 12}}
    assert [(e.budget, e.id) for e in run.episodes] == [(k, p.id) for k in (1, 2, 3) for p in PUZZLES]
    assert run.record.sandbox == "nothing: the tests' own code"
    assert run.tasks == tuple(PUZZLES)
    assert finish(tmp_path / "run", resume=True).asked == [], "what is finished is not run again"


def test_the_episodes_of_a_turn_are_asked_together(tmp_path: Path) -> None:
    speaker = finish(tmp_path / "run", at_once=36)
    assert [len(batch) for batch in speaker.asked] == [36, 24]
    speaker = finish(tmp_path / "other", at_once=5)
    assert {len(batch) for batch in speaker.asked[:-3]} == {5}
    assert words_of(tmp_path / "run") == words_of(tmp_path / "other")


def test_sets_are_counted_apart_and_errors_are_no_failures(tmp_path: Path) -> None:
    tasks = [PUZZLES[0], CODE_TASK, dataclasses.replace(CODE_TASK, id="2")]

    def script(messages: Sequence[Message]) -> str | Answer:
        if not messages[0]["content"].endswith("Write f."):
            return Answer(text="", error="HTTP 500 (5 tries)")
        return "<solution>def f(): return 1</solution>"

    settings = AgentSettings(speaker=Opposite(model="m"), budgets=(1,))
    record = run_agent(Cast(speaker=Scripted(script), tools=PlainTools()), tasks, settings, tmp_path / "run")
    assert [(r.set, r.num_solved, r.num_tasks, r.num_errors) for r in record.rates] == [
        ("", 2, 2, 1), ("puzzles", 0, 0, 1), ("mbpp", 2, 2, 0),
    ]  # fmt: skip
    # Going on tries the errors again, and only those.
    speaker = Scripted(solver(by_prompt(PUZZLES)))
    again = run_agent(Cast(speaker=speaker, tools=PlainTools()), tasks, settings, tmp_path / "run", resume=True)
    assert [len(batch) for batch in speaker.asked] == [1]
    first = again.rates[0]
    assert (first.set, first.num_solved, first.num_tasks, first.num_errors) == ("", 2, 3, 0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    """Figures by hand from (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n), z = 1.96."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)
    if trials:
        interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_a_run_that_is_cut_short_and_then_stopped_can_still_go_on(tmp_path: Path) -> None:
    """What a kill left of a line must be gone before the next one is appended."""
    finish(tmp_path / "run")
    whole = words_of(tmp_path / "run")
    path = tmp_path / "run" / "episodes.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:20])[:-30])
    (tmp_path / "run" / "blockexpand.json").unlink()
    solve, calls = solver(by_prompt(PUZZLES)), [0]

    def interrupted(messages: Sequence[Message]) -> str | Answer:
        calls[0] += 1
        if calls[0] == 20:
            raise KeyboardInterrupt
        return solve(messages)

    with pytest.raises(Interrupted, match=r"stopped after \d+ of 36 episodes; go on with --resume"):
        finish(tmp_path / "run", interrupted, resume=True)
    with pytest.raises(AgentError, match="holds no finished run .* go on with it with --resume"):
        read_agent(tmp_path / "run")
    finish(tmp_path / "run", resume=True)
    assert words_of(tmp_path / "run") == whole


def test_a_killed_run_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL for real, at a moment that the journal shows to lie in the middle."""
    finish(tmp_path / "whole")
    code = (
        "import sys, time, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "import test_agent_running as t\n"
        "solve = t.solver(t.by_prompt(t.PUZZLES))\n"
        "t.finish(pathlib.Path(sys.argv[1]), lambda m: (time.sleep(0.02), solve(m))[1], at_once=2)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run"), *paths])
    journal = tmp_path / "run" / "episodes.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 6):
        assert time.monotonic() < deadline, "the run did not begin"
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    child.kill()
    child.wait()
    before = journal.read_bytes()
    assert 6 <= before.count(b"\n") < 36
    speaker = finish(tmp_path / "run", resume=True)
    assert words_of(tmp_path / "run") == words_of(tmp_path / "whole")
    ended = before.count(b"\n")
    assert sum(len(batch) for batch in speaker.asked) <= 12 + 24 * 2 - ended


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    with pytest.raises(AgentError, match="run already holds a run; add --resume"):
        finish(tmp_path / "run")
    cast = Cast(speaker=Scripted(solver(by_prompt(PUZZLES))), tools=PlainTools())
    with pytest.raises(AgentError, match=r"begun with other settings: budgets \(1, 2, 3\), now \(1,\)"):
        run_agent(cast, PUZZLES, dataclasses.replace(SETTINGS, budgets=(1,)), tmp_path / "run", resume=True)
    with pytest.raises(AgentError, match="begun with other settings: tasks_digest"):
        run_agent(cast, PUZZLES[:3], SETTINGS, tmp_path / "run", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(StagingError, match="already exists"):
        finish(tmp_path / "other")
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["mine.txt"]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    path = tmp_path / "run" / "episodes.jsonl"
    whole = path.read_text()
    with pytest.raises(AgentError, match="none holds no finished run of an agent: it has no blockexpand.json; make"):
        read_agent(tmp_path / "none")
    path.write_text(whole.partition("\n")[2])
    with pytest.raises(AgentError, match="has 35 episodes; expected 36"):
        read_agent(tmp_path / "run")
    path.write_text(whole[:-5])
    with pytest.raises(AgentError, match="episodes.jsonl ends within a line"):
        read_agent(tmp_path / "run")
    path.write_text(whole.replace('"budget"', '"bugdet"', 1))
    with pytest.raises(AgentError, match="line 1: unknown key 'bugdet'; did you mean 'budget'"):
        read_agent(tmp_path / "run")
    path.write_text(whole)
    tasks = tmp_path / "run" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace("remainder", "rest"))
    with pytest.raises(AgentError, match="tasks.jsonl holds other tasks than the run had"):
        read_agent(tmp_path / "run")
