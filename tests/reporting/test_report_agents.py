"""Runs of agents on the page: the rates as in the record, and every word of every transcript to read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from page_reader import PageReader
from report_examples import write_evaluation

from blockexpand.agents import Cast, make_puzzles, run_agent
from blockexpand.errors import ReportError
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import AgentSettings, Manner, Opposite, Task, read_agent
from blockexpand.reporting import report
from blockexpand.reporting.sources import gather
from helpers import edit_json, tree
from players import PlainTools, Scripted, solver

HOSTILE = "<solution></pre><script>alert({{ 7*7 }})</script></solution>"
TASK = Task(set="math", id="<b>1</b>", prompt="What is </pre><i>2 & 3?", scoring="text", reference="42")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that solves puzzles in two turns, and one that answers with markup, advised, once cut off by its server."""
    root = tmp_path_factory.mktemp("agents")
    puzzles = make_puzzles(4)
    good = Cast(speaker=Scripted(solver({p.prompt: p for p in puzzles})), tools=PlainTools())
    run_agent(good, puzzles, AgentSettings(speaker=Opposite(model="good"), budgets=(1, 2)), root / "good")

    def bad(messages: Sequence[Message]) -> str | Answer:
        return (
            HOSTILE if "math" not in messages[0]["content"] and len(messages) < 3 else Answer(text="", error="HTTP 503")
        )

    settings = AgentSettings(
        speaker=Opposite(model="bad", endpoint="http://localhost:1/v1"),
        adviser=Opposite(model="teacher"),
        budgets=(1, 2),
        manner=Manner(feedback="blind"),
    )
    cast = Cast(speaker=Scripted(bad), tools=PlainTools(), adviser=Scripted(lambda _: "think <again>"))
    run_agent(cast, [TASK], settings, root / "bad")
    return [root / "good", root / "bad"]


@pytest.fixture(scope="module")
def out(folders: list[Path]) -> Path:
    return report(folders, folders[0].parent / "report").parent


def test_the_table_is_the_records(out: Path) -> None:
    page = PageReader((out / "index.html").read_text())
    rows = [[" ".join(cell.split()) for cell in row] for row in page.tables["agents"][1:]]
    assert rows == [
        ["good", "all tasks", "1", "0 % | 0 to 49 %", "0", "4", "0"],
        ["good", "all tasks", "2", "100 % | 51 to 100 %", "4", "4", "0"],
        ["bad", "all tasks", "1", "0 % | 0 to 79 %", "0", "1", "0"],
        ["bad", "all tasks", "2", "\u2013", "0", "0", "1"],
    ]
    assert "agents" in {path.stem for path in (out / "figures").iterdir()}
    assert any("good: 0 % in 1, 100 % in 2; bad: 0 % in 1" in label for label in page.values("aria-label"))


def test_every_word_of_every_episode_can_be_read(folders: list[Path], out: Path) -> None:
    for number, folder in enumerate(folders, 1):
        html = (out / f"transcripts-{number}.html").read_text()
        page = PageReader(html)
        run = read_agent(folder)
        assert page.tags.count("details") == len(run.episodes)
        for task in run.tasks:
            assert task.prompt in page.text
            assert task.reference in page.text
        for episode in run.episodes:
            for turn in episode.turns:
                assert turn.output in page.text
                assert turn.shown in page.text
                assert turn.feedback in page.text
            assert episode.error in page.text
        for sign in ("<script", "://", "<b>", "<i>"):
            assert sign not in html.replace("http://localhost:1/v1", ""), sign
        assert set(page.values("href")) == {"data:,", "index.html"}
        assert "default-src 'none'" in "".join(page.values("content"))


def test_the_page_shows_some_and_leads_to_all(out: Path) -> None:
    page = PageReader((out / "index.html").read_text())
    links = {value for value in page.values("href") if not value.startswith(("#", "data:"))}
    assert links == {"transcripts-1.html", "transcripts-2.html"}
    assert all((out / link).is_file() for link in links)
    assert "solved puzzles arithmetic-0-0, 2 turns at most" in page.words
    assert "arithmetic-0-0, 1 turn at most" not in page.words
    assert "bad solved 0 % of 0 tasks within 2 turns" in " ".join(page.by_id["verdict"].split())


def test_the_same_records_give_the_same_bytes(folders: list[Path], out: Path, tmp_path: Path) -> None:
    again = report(folders, tmp_path / "again").parent
    assert tree(again) == tree(out)


def test_the_sources_are_named_and_other_kinds_stand_beside(folders: list[Path], tmp_path: Path) -> None:
    found = gather([folders[0], write_evaluation(tmp_path / "eval")])
    assert [run.label for run in found.agents] == ["good"]
    names = [(Path(s.path).name, s.format) for s in found.sources]
    assert ("episodes.jsonl", "episodes") in names
    assert ("tasks.jsonl", "tasks") in names
    page = PageReader(report([folders[0], tmp_path / "eval"], tmp_path / "out").read_text())
    assert {"agents", "evaluations"} <= set(page.tables)


def test_a_damaged_run_is_refused(folders: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "run")
    (tmp_path / "run" / "episodes.jsonl").write_text("{}\n")
    with pytest.raises(ReportError, match="cannot report on .*run.*: .*episodes.jsonl, line 1"):
        report([tmp_path / "run"], tmp_path / "out")
    edit_json(tmp_path / "run" / "blockexpand.json", lambda record: record.pop("rates"))
    with pytest.raises(ReportError, match="the key 'rates' is missing"):
        report([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
