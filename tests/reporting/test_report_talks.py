"""Runs of agents and judged pairs on the page: the counts as in the records, and every word to read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from page_reader import PageReader

from blockexpand.agents import Cast, judge_pair, make_puzzles, run_agent
from blockexpand.errors import ReportError
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import AgentSettings, Manner, Opposite, Task, read_agent
from blockexpand.records.judge import JudgeSettings, Question, read_judge
from blockexpand.reporting import report
from helpers import tree
from players import PlainTools, Script, Scripted, solver

MARKUP = "</pre><script>alert({{ 7*7 }})</script>"
TASK = Task(set="math", id="<b>1</b>", prompt="What is </pre><i>2 & 3?", scoring="text", reference="42")


def rows_of(page: PageReader, name: str) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in page.tables[name][1:]]


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that solves puzzles in two turns, and one that answers with markup, advised, once cut off by its server."""
    root = tmp_path_factory.mktemp("agents")
    puzzles = make_puzzles(4)
    good = Cast(speaker=Scripted(solver({p.prompt: p for p in puzzles})), tools=PlainTools())
    run_agent(good, puzzles, AgentSettings(speaker=Opposite(model="good"), budgets=(1, 2)), root / "good")

    def bad(messages: Sequence[Message]) -> str | Answer:
        fails = "math" in messages[0]["content"] or len(messages) >= 3
        return Answer(text="", error="HTTP 503") if fails else f"<solution>{MARKUP}</solution>"

    settings = AgentSettings(
        speaker=Opposite(model="bad", endpoint="http://localhost:1/v1"),
        adviser=Opposite(model="teacher"),
        budgets=(1, 2),
        manner=Manner(feedback="blind"),
    )
    cast = Cast(speaker=Scripted(bad), tools=PlainTools(), adviser=Scripted(lambda _: "think <again>"))
    run_agent(cast, [TASK], settings, root / "bad")
    return [root / "good", root / "bad"]


def says(name: str, fails: int = 0) -> Script:
    def script(messages: Sequence[Message]) -> str | Answer:
        if f"Question {fails}?" in messages[0]["content"] and len(messages) > 1:
            return Answer(text="", error="HTTP 503")
        return f"{name}, turn {len(messages) // 2 + 1}: {MARKUP} to {messages[-1]['content']}"

    return script


def prefers(messages: Sequence[Message]) -> str:
    """1 and 4: the first model; 2: the second; 3: whoever is shown first; 6: neither; 5 is never asked."""
    text = messages[0]["content"]
    number = next(n for n in range(1, 7) if f"Question {n}?" in text)
    first_is_a = text.index("alpha, turn 1") < text.index("beta, turn 1")
    mine, other = ("A", "B") if first_is_a else ("B", "A")
    return f"Reasons about {number} <u>\nVerdict: {({1: mine, 2: other, 3: 'A', 4: mine, 6: 'tie'})[number]}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions of two categories; the last has one turn only."""
    out = tmp_path_factory.mktemp("judged") / "pair"
    questions = [
        Question(
            question_id=n,
            category="writing" if n < 4 else "maths",
            turns=(f"Question {n}? {MARKUP}", f"And {n} then?")[: 1 if n == 6 else 2],
            reference=("42 <i>of course</i>",) if n == 4 else (),
        )
        for n in range(1, 7)
    ]
    names = Opposite(model="models/one"), Opposite(model="models/two<b>")
    settings = JudgeSettings(first=names[0], second=names[1], judge=Opposite(model="j"))
    judge_pair(Scripted(says("alpha")), Scripted(says("beta", fails=5)), Scripted(prefers), questions, settings, out)
    return out


@pytest.fixture(scope="module")
def out(agents: list[Path], pair: Path) -> Path:
    return report([*agents, pair], pair.with_name("report")).parent


def test_the_tables_are_the_records(agents: list[Path], pair: Path, out: Path, tmp_path: Path) -> None:
    page = PageReader((out / "index.html").read_text())
    assert rows_of(page, "agents") == [
        ["good", "all tasks", "1", "0 % | 0 to 49 %", "0", "4", "4 turns"],
        ["good", "all tasks", "2", "100 % | 51 to 100 %", "4", "4", "none"],
        ["bad", "all tasks", "1", "0 % | 0 to 79 %", "0", "1", "1 proposals"],
        ["bad", "all tasks", "2", "\u2013", "0", "0", "1 error"],
    ]
    assert rows_of(page, "judged") == [
        ["pair", "all questions", "60 % | 23 to 88 %", "2", "2", "1", "1", "1"],
        ["pair", "writing", "50 % | 13 to 87 %", "1", "1", "1", "1", "0"],
        ["pair", "maths", "75 % | 20 to 97 %", "1", "1", "0", "0", "1"],
    ]
    assert {"agents.svg", "judged.svg"} == {path.name for path in (out / "figures").iterdir()}
    assert "no task came to an end" in page.by_id["verdict"]
    alone = PageReader(report([pair], tmp_path / "alone").read_text())
    assert "includes one half: neither is called better" in " ".join(alone.by_id["verdict"].split())
    assert tree(report([*agents, pair], tmp_path / "again").parent) == tree(out), "the same records, the same bytes"


def test_every_word_can_be_read_and_is_no_markup(agents: list[Path], pair: Path, out: Path) -> None:
    pages = {path.name: PageReader(path.read_text()) for path in out.glob("*.html")}
    assert {v for v in pages["index.html"].values("href") if v.endswith("html")} == set(pages) - {"index.html"}
    for number, folder in enumerate(agents, 1):
        page, run = pages[f"transcripts-{number}.html"], read_agent(folder)
        assert page.tags.count("details") == len(run.episodes)
        said = [text for task in run.tasks for text in (task.prompt, task.reference)]
        said += [t for e in run.episodes for one in e.turns for t in (one.output, one.shown, one.feedback)]
        assert [text for text in said if text not in page.text] == []
    run, page = read_judge(pair), pages["judged-1.html"]
    assert page.tags.count("details") == len(run.questions) == 6
    said = [text for question in run.questions for text in (*question.turns, *question.reference)]
    said += [text for side in (*run.first, *run.second) for text in side.turns]
    said += [text for look in run.judgements for text in (look.text, look.error)]
    assert [text for text in said if text not in page.text] == []
    for name, page in pages.items():
        assert not {"script", "b", "i", "u"} & set(page.tags), name
        assert "default-src 'none'" in "".join(page.values("content"))
    main = pages["index.html"].words
    assert "solved puzzles arithmetic-0-0, 2 turns at most" in main
    assert "arithmetic-0-0, 1 turn at most" not in main
    assert all(heading in main for heading in ("win writing 1", "loss writing 2", "tie writing 3"))


def test_what_does_not_belong_together_is_refused(agents: list[Path], pair: Path, tmp_path: Path) -> None:
    shutil.copytree(agents[0], tmp_path / "run")
    (tmp_path / "run" / "episodes.jsonl").write_text("{}\n")
    shutil.copytree(pair, tmp_path / "pair")
    lines = (tmp_path / "pair" / "answers-second.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pair" / "answers-second.jsonl").write_text("".join(lines[:4]))
    for name, file in (("run", "episodes.jsonl"), ("pair", "answers-second.jsonl")):
        with pytest.raises(ReportError, match=file):
            report([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()
