"""Episodes with the real sandbox: the puzzles solved by their programs, code checked by its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.agents import Cast, SandboxTools, make_puzzles, run_agent
from blockexpand.errors import SandboxError
from blockexpand.records.agents import AgentSettings, Opposite, Task, read_agent
from blockexpand.sandbox import describe
from players import Scripted, lines, solver

pytestmark = pytest.mark.skipif(describe().startswith("sandbox: none"), reason=describe())

SETTINGS = AgentSettings(speaker=Opposite(model="scripted"), budgets=(2,))


def test_programs_solve_their_puzzles(tmp_path: Path) -> None:
    puzzles = make_puzzles(8, seed=1)
    cast = Cast(speaker=Scripted(solver({p.prompt: p for p in puzzles})), tools=SandboxTools())
    record = run_agent(cast, puzzles, SETTINGS, tmp_path / "run")
    assert (record.rates[0].num_solved, record.rates[0].num_tasks) == (8, 8)
    assert record.sandbox.startswith("sandbox: ")
    assert [turn.status for e in read_agent(tmp_path / "run").episodes for turn in e.turns] == ["ok", ""] * 8


def test_what_a_call_shows(tmp_path: Path) -> None:
    outputs = (
        "<execute>n = 20\nn + 1</execute>",
        "<execute>import sys\nprint(n * 2)\nprint('warned', file=sys.stderr)\n1 / 0</execute>",
        "<execute>print('x' * 9000)</execute>",
        "<execute>import socket\nsocket.create_connection(('127.0.0.1', 9), 1)</execute>",
        "<execute>import os\nos._exit(0)</execute>",
        "<execute>'n' in globals()</execute>",
    )
    task = Task(set="a", id="1", prompt="Q", scoring="exact", reference="1")
    settings = AgentSettings(speaker=Opposite(model="scripted"), budgets=(6,))
    run_agent(Cast(speaker=Scripted(lines(*outputs)), tools=SandboxTools()), [task], settings, tmp_path / "run")
    turns = read_agent(tmp_path / "run").episodes[0].turns
    assert turns[0].shown == "21"
    assert turns[1].shown.startswith("40\nwarned\nTraceback")
    assert turns[1].shown.endswith("ZeroDivisionError: division by zero")
    assert turns[2].shown.startswith("x" * 2000)
    assert len(turns[2].shown) < 2100
    assert turns[3].status == "error"
    assert turns[4].status == "killed"
    assert "begins anew" in turns[4].shown
    assert turns[5].shown.startswith("False")


def test_without_a_sandbox_nothing_begins_unless_unsafe_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(code: str, unsafe: bool = False) -> None:
        if not unsafe:
            raise SandboxError("nothing here isolates code")

    monkeypatch.setattr("blockexpand.agents.tools.run_program", none)
    puzzles = make_puzzles(1)
    with pytest.raises(SandboxError, match="nothing here isolates code"):
        run_agent(Cast(speaker=Scripted(lines("?")), tools=SandboxTools()), puzzles, SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert SandboxTools(unsafe=True).describe() == "none: --unsafe was given"
