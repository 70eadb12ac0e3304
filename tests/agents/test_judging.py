"""Two models compared by a judge: positions swapped, ties, errors that are no ties, files of answers, going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blockexpand.agents import judge_pair, load_questions
from blockexpand.agents.judge import verdict_of
from blockexpand.errors import AgentError, Interrupted
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import Opposite
from blockexpand.records.judge import JudgeRecord, JudgeSettings, Question
from players import Script, Scripted, lines

QUESTIONS = [
    Question(question_id=n, category="ab"[n % 2], turns=(f"Question {n}?", f"And {n} then?"), reference=("r1", "r2"))
    for n in range(1, 5)
]
SETTINGS = JudgeSettings(first=Opposite(model="x"), second=Opposite(model="y"), judge=Opposite(model="j"))


def says(name: str) -> Script:
    """A model that answers with its name, the turn and what it was asked."""

    def script(messages: Sequence[Message]) -> str:
        return f"{name}{len(messages)} {messages[-1]['content']}"

    return script


def judge_who(prefers: Callable[[int, bool], str | Answer]) -> Script:
    """A judge that says, for a question's number and whether x stands first, what the function says."""

    def script(messages: Sequence[Message]) -> str | Answer:
        text = messages[0]["content"]
        number = next(n for n in range(1, 5) if f"Question {n}?" in text)
        return prefers(number, text.index("x1 Question") < text.index("y1 Question"))

    return script


def judged(out: Path, judge: Script, first: Script | None = None, resume: bool = False) -> tuple[JudgeRecord, Scripted]:
    asked = Scripted(judge)
    return judge_pair(Scripted(first or says("x")), Scripted(says("y")), asked, QUESTIONS, SETTINGS, out, resume), asked


def counts(record: JudgeRecord) -> list[tuple[str, int, int, int, int, int]]:
    return [
        (t.category, t.num_wins, t.num_ties, t.num_losses, t.num_errors, t.num_disagreements) for t in record.tallies
    ]


def test_a_win_needs_both_orders(tmp_path: Path) -> None:
    def prefers(number: int, x_first: bool) -> str:
        mine, other = ("A", "B") if x_first else ("B", "A")
        return {
            1: f"Verdict: {mine}",  # x in both orders
            2: f"Verdict: {other}",  # y in both
            3: "Verdict: A",  # whoever stands first
            4: f"Verdict: {mine}" if x_first else "Verdict: tie",
        }[number]

    record, _ = judged(tmp_path / "run", judge_who(prefers))
    assert counts(record) == [("", 1, 2, 1, 0, 1), ("b", 1, 1, 0, 0, 1), ("a", 0, 1, 1, 0, 0)]
    overall = record.tallies[0]
    assert overall.win_rate == 0.5
    assert (round(overall.low, 4), round(overall.high, 4)) == (0.15, 0.85)
    rows = [json.loads(line) for line in (tmp_path / "run" / "judgements.jsonl").read_text().splitlines()]
    assert [(r["question_id"], r["swapped"], r["verdict"]) for r in rows][:4] == [
        (1, False, "first"), (1, True, "first"), (2, False, "second"), (2, True, "second"),
    ]  # fmt: skip


def test_what_cannot_be_read_is_an_error_and_no_tie(tmp_path: Path) -> None:
    def prefers(number: int, x_first: bool) -> str | Answer:
        if number == 1:
            return "I like them both."
        if number == 2:
            return Answer(text="", error="HTTP 500 (5 tries)")
        return "Verdict: tie" if number == 3 or x_first else "Assistant A is better"

    record, _ = judged(tmp_path / "run", judge_who(prefers))
    assert counts(record)[0] == ("", 0, 1, 0, 3, 0)
    assert record.tallies[0].win_rate == 0.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "judgements.jsonl").read_text().splitlines()]
    assert [r["error"] for r in rows[:3]] == ["no line with a verdict"] * 2 + ["HTTP 500 (5 tries)"]
    assert rows[0]["text"] == "I like them both."
    # Going on asks for what failed, and for nothing else.
    record, asked = judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"), resume=True)
    assert sum(len(batch) for batch in asked.asked) == 5
    assert counts(record)[0] == ("", 0, 4, 0, 0, 0)


def test_an_answer_that_never_came_is_not_judged(tmp_path: Path) -> None:
    def fails(messages: Sequence[Message]) -> str | Answer:
        second_turn_of_two = len(messages) == 3 and "Question 2?" in messages[0]["content"]
        return Answer(text="", error="HTTP 429") if second_turn_of_two else says("x")(messages)

    record, asked = judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"), first=fails)
    assert counts(record)[0] == ("", 0, 3, 0, 1, 0)
    assert sum(len(batch) for batch in asked.asked) == 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "judgements.jsonl").read_text().splitlines()]
    assert rows[2]["error"] == "no answer to judge: turn 2: HTTP 429"
    # When going on, the answer is asked for again, then judged.
    record, asked = judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"), resume=True)
    assert counts(record)[0] == ("", 0, 4, 0, 0, 0)
    assert sum(len(batch) for batch in asked.asked) == 2


def test_the_judge_sees_the_whole_of_both_conversations_and_the_reference(tmp_path: Path) -> None:
    _, asked = judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"))
    straight, swapped = (request.messages[0]["content"] for request in asked.asked[0][:2])
    a, b = (straight.index(f"=== Assistant {name} ===") for name in "AB")
    assert straight[a:b].split("\n\n")[:4] == [
        "=== Assistant A ===\n[User]\nQuestion 1?",
        "[Assistant]\nx1 Question 1?",
        "[User]\nAnd 1 then?",
        "[Assistant]\nx3 And 1 then?",
    ]
    assert "y3 And 1 then?" in straight[b:]
    assert swapped.index("y1 Question 1?") < swapped.index("x1 Question 1?")
    assert "=== A right answer, turn by turn ===\nr1\n\nr2\n" in straight


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Because.\nVerdict: A", "first"),
        ("**Verdict: B**", "second"),
        ("verdict: tie.", "tie"),
        ("Verdict: A\nNo, wait.\nVerdict: B\n", "second"),
        ("Verdict: A is better", ""),
        ("The verdict: A", ""),
        ("", ""),
    ],
)
def test_only_a_line_with_a_verdict_counts(text: str, verdict: str) -> None:
    other = {"first": "second", "second": "first"}
    assert verdict_of(text, swapped=False) == verdict
    assert verdict_of(text, swapped=True) == other.get(verdict, verdict)


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexpand.agents.judge._AT_ONCE", 2)
    calls = [0]

    def stopped(number: int, x_first: bool) -> str:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return "Verdict: tie"

    with pytest.raises(Interrupted, match="stopped after 4 of 8 judgements; go on with --resume"):
        judged(tmp_path / "run", judge_who(stopped))
    assert not (tmp_path / "run" / "blockexpand.json").exists()
    record, asked = judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"), resume=True)
    assert sum(len(batch) for batch in asked.asked) == 4
    assert counts(record)[0] == ("", 0, 4, 0, 0, 0)
    with pytest.raises(AgentError, match="already holds a run; add --resume"):
        judged(tmp_path / "run", judge_who(lambda *_: "Verdict: tie"))
    silent = Scripted(lines())
    with pytest.raises(AgentError, match=r"begun with other settings: questions_digest"):
        judge_pair(silent, silent, silent, QUESTIONS[:1], SETTINGS, tmp_path / "run", resume=True)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_mt_benchs_questions_are_read(tmp_path: Path) -> None:
    asked = write(
        tmp_path / "question.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]},
        {"question_id": 121, "category": "coding", "turns": ["One?"], "reference": ["It is\u2028one."]},
    )
    questions = load_questions(asked)
    assert [q.question_id for q in questions] == [81, 121]
    assert questions[1].reference == ("It is\u2028one.",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "at least one question"),
        ([{"question_id": 1, "category": "a", "turns": []}], r"turns: expected one or more questions, got \[\]"),
        ([{"question_id": 1, "turns": ["x"]}], "line 1: the key 'category' is missing"),
        ([{"question_id": 1, "category": "a", "turn": ["x"]}], "line 1: unknown key 'turn'; did you mean 'turns'"),
        (["{"], "line 1 is not JSON"),
        ([{"question_id": 1, "category": "a", "turns": ["x"]}] * 2, "an id that no other question has, got 1"),
    ],
)
def test_what_is_no_question_is_refused(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=f"no questions: .*{said}"):
        load_questions(write(tmp_path / "q.jsonl", *rows))
    with pytest.raises(AgentError, match="no questions: no such file"):
        load_questions(tmp_path / "none.jsonl")
