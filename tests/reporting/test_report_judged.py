"""Judged pairs on the page: the counts as in the record, and every word of both conversations to read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from page_reader import PageReader

from blockexpand.agents import Sides, judge_pair
from blockexpand.errors import AgentError, ReportError
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import Opposite
from blockexpand.records.judge import JudgeSettings, Question, read_judge
from blockexpand.reporting import report
from blockexpand.reporting.sources import gather
from browser import browser, find_chromium
from helpers import edit_json, tree
from players import Script, Scripted

MARKUP = "</pre><script>alert({{ 7*7 }})</script>"
NAMES = ("models/one", "models/two<b>")


def questions() -> list[Question]:
    """Six, of two categories; the last has one turn only."""
    made = [
        Question(
            question_id=n,
            category="writing" if n < 4 else "maths",
            turns=(f"Question {n}? {MARKUP}", f"And {n} then?")[: 1 if n == 6 else 2],
            reference=("42 <i>of course</i>",) if n == 4 else (),
        )
        for n in range(1, 7)
    ]
    assert len({len(question.turns) for question in made}) == 2
    return made


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
    word = {1: mine, 2: other, 3: "A", 4: mine, 6: "tie"}[number]
    return f"Reasons about {number} <u>{first_is_a}</u>\nVerdict: {word}"


def make_judged(out: Path, first: str = NAMES[0]) -> Path:
    settings = JudgeSettings(first=Opposite(model=first), second=Opposite(model=NAMES[1]), judge=Opposite(model="j"))
    sides = Sides(first=Scripted(says("alpha")), second=Scripted(says("beta", fails=5)), judge=Scripted(prefers))
    judge_pair(sides, questions(), settings, out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_judged(tmp_path_factory.mktemp("judged") / "pair")


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    return report([folder], folder.with_name("report")).parent


def rows_of(page: PageReader, name: str) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in page.tables[name][1:]]


def test_the_counts_are_the_records(folder: Path, out: Path) -> None:
    page = PageReader((out / "index.html").read_text())
    assert rows_of(page, "judged") == [
        ["pair", "all questions", "60 % | 23 to 88 %", "2", "2", "1", "1", "1"],
        ["pair", "writing", "50 % | 13 to 87 %", "1", "1", "1", "1", "0"],
        ["pair", "maths", "75 % | 20 to 97 %", "1", "1", "0", "0", "1"],
        ["pair", "of 1 turn", "50 % | 5 to 95 %", "0", "1", "0", "0", "0"],
        ["pair", "of 2 turns", "62 % | 22 to 91 %", "2", "1", "1", "1", "1"],
    ]
    whole = read_judge(folder).record.tallies[0]
    assert (whole.num_wins, whole.num_ties, whole.num_losses, whole.num_errors) == (2, 2, 1, 1)
    assert rows_of(page, "judged-questions") == [
        ["1", "writing", "2", "the first", "the first", "win"],
        ["2", "writing", "2", "the second", "the second", "loss"],
        ["3", "writing", "2", "the first", "the second", "tie"],
        ["4", "maths", "2", "the first", "the first", "win"],
        ["5", "maths", "2", "none", "none", "error"],
        ["6", "maths", "1", "tie", "tie", "tie"],
    ]
    assert "judged.png" in {path.name for path in (out / "figures").iterdir()}
    assert any("pair, writing: 50 %" in label for label in page.values("aria-label"))
    sentence = " ".join(page.by_id["verdict"].split())
    assert "2 wins, 1 loss, 2 ties; a win rate of 60 %" in sentence
    assert "(23 to 88 %) includes one half: neither is called better" in sentence


def test_every_word_of_both_sides_can_be_read(folder: Path, out: Path) -> None:
    html = (out / "judged-1.html").read_text()
    page, run = PageReader(html), read_judge(folder)
    assert page.tags.count("details") == len(run.questions) == 6
    for question in run.questions:
        assert all(text in page.text for text in (*question.turns, *question.reference))
    for side in (*run.first, *run.second):
        assert all(text in page.text for text in side.turns)
    for side, name in (("first", "alpha"), ("second", "beta")):
        after = [part.split()[0].strip(",") for part in page.text.split(f"The {side} model")[1:]]
        assert set(after) == ({name, "(no"} if side == "second" else {name})
    assert "(no answer: turn 2: HTTP 503)" in page.text
    for look in run.judgements:
        assert look.text in page.text
        assert look.error in page.text
    for sign in ("<script", "<b>", "<i>", "<u>", "://"):
        assert sign not in html, sign
    assert "default-src 'none'" in "".join(page.values("content"))


def test_the_page_shows_one_of_each_and_leads_to_all(out: Path) -> None:
    page = PageReader((out / "index.html").read_text())
    links = {value for value in page.values("href") if not value.startswith(("#", "data:"))}
    assert links == {"judged-1.html"}
    assert (out / "judged-1.html").is_file()
    shown = [heading for heading in ("win writing 1", "loss writing 2", "tie writing 3") if heading in page.words]
    assert len(shown) == 3
    assert "win maths 4" not in page.words


def test_two_pairs_stand_side_by_side_and_a_clear_win_is_said(folder: Path, tmp_path: Path) -> None:
    clear = Sides(
        first=Scripted(says("alpha")),
        second=Scripted(says("beta")),
        judge=Scripted(
            lambda m: "Verdict: " + ("A" if m[0]["content"].index("alpha") < m[0]["content"].index("beta") else "B")
        ),
    )
    settings = JudgeSettings(first=Opposite(model="ours"), second=Opposite(model="theirs"), judge=Opposite(model="j"))
    judge_pair(clear, questions(), settings, tmp_path / "clear")
    page = PageReader(report([folder, tmp_path / "clear"], tmp_path / "out").read_text())
    assert [row[0] for row in rows_of(page, "judged")].count("clear") == 5
    assert {"judged-questions", "judged-questions-2"} <= set(page.tables)
    assert "ours against theirs: 6 wins, 0 losses, 0 ties" in " ".join(page.by_id["verdict"].split())
    assert "the judge prefers ours" in page.by_id["verdict"]


def test_the_sources_are_named_and_the_bytes_are_the_same_again(folder: Path, out: Path, tmp_path: Path) -> None:
    names = {(Path(source.path).name, source.format) for source in gather([folder]).sources}
    assert {
        ("blockexpand.json", "blockexpand.judge"), ("questions.jsonl", "questions"), ("judgements.jsonl", "judgements"),
        ("answers-first.jsonl", "conversations"), ("answers-second.jsonl", "conversations"),
    } == names  # fmt: skip
    assert tree(report([folder], tmp_path / "again").parent) == tree(out)


def swap_verdict(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["verdict"] = "second"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_does_not_belong_together_is_refused(folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    swap_verdict(broken("verdict") / "judgements.jsonl")
    with pytest.raises(ReportError, match=r"judgements.jsonl comes to other counts than .*blockexpand.json has"):
        report([tmp_path / "verdict"], tmp_path / "out")
    lines = (broken("short") / "answers-second.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short" / "answers-second.jsonl").write_text("".join(lines[:4]))
    with pytest.raises(ReportError, match=r"answers-second.jsonl has 4 lines that are not those of the 6 questions"):
        report([tmp_path / "short"], tmp_path / "out")
    path = broken("asked") / "questions.jsonl"
    path.write_text(path.read_text().replace("Question 1?", "Question one?"))
    with pytest.raises(ReportError, match=r"questions.jsonl holds other questions than the run had"):
        report([tmp_path / "asked"], tmp_path / "out")
    edit_json(broken("record") / "blockexpand.json", lambda record: record.pop("tallies"))
    with pytest.raises(ReportError, match="the key 'tallies' is missing"):
        report([tmp_path / "record"], tmp_path / "out")
    (broken("unfinished") / "blockexpand.json").unlink()
    with pytest.raises(AgentError, match=r"holds no finished judgement: it has no blockexpand.json"):
        read_judge(tmp_path / "unfinished")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")
def test_screens(out: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for width, scheme in ((390, "dark"), (1280, "light")):
            for name in ("index.html", "judged-1.html"):
                tab.open(out / name, width, scheme)
                assert tab.value("document.querySelectorAll('details').forEach(one => one.open = true)") is None
                assert tab.value("document.scrollingElement.scrollWidth") <= width
                side = tab.value("document.querySelector('.sides > div').getBoundingClientRect().width")
                assert (side > width / 2) is (width < 500)
