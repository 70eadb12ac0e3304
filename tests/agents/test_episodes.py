"""Episodes, turn by turn, with a scripted model: each rule of the protocol by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from blockexpand.agents import prompts
from blockexpand.agents.episodes import action_of, messages_of
from blockexpand.agents.runs import Cast, run_agent
from blockexpand.errors import RecordError
from blockexpand.evaluation.endpoint import Answer, Message
from blockexpand.records.agents import AgentSettings, Episode, Manner, Opposite, Task, read_agent
from players import PlainTools, Script, Scripted, lines

TASK = Task(set="math", id="1", prompt="What is 6 times 7?", scoring="text", reference="42")
RIGHT, WRONG = "<thought>t</thought><solution> 42 </solution>", "<solution>7</solution>"
CODE, NOTHING = "<execute>x = 41\nprint(x + 1)</execute>", "I do not know."


def play(tmp_path: Path, script: Script, budget: int, task: Task = TASK, **settings: Any) -> tuple[Episode, Scripted]:
    speaker = Scripted(script)
    cast = Cast(speaker=speaker, tools=PlainTools())
    chosen = AgentSettings(speaker=Opposite(model="m"), budgets=(budget,), **settings)
    run_agent(cast, [task], chosen, tmp_path / "run")
    return read_agent(tmp_path / "run").episodes[0], speaker


@pytest.mark.parametrize(
    ("budget", "outputs", "end", "num_turns"),
    [
        (1, [RIGHT], "solved", 1),
        (1, [WRONG], "proposals", 1),
        (1, [NOTHING], "turns", 1),
        (2, [WRONG, RIGHT], "solved", 2),
        (3, [WRONG, WRONG], "proposals", 2),
        (3, [NOTHING, CODE, WRONG], "turns", 3),
        (5, [CODE, WRONG, CODE, CODE, RIGHT], "solved", 5),
        (5, [NOTHING, NOTHING, CODE, WRONG, RIGHT], "solved", 5),
        (5, [NOTHING, NOTHING, NOTHING, NOTHING, CODE], "turns", 5),
        (5, ["<solution>", "<solution>7"], "proposals", 2),
    ],
)
def test_an_episode_ends_when_it_should(
    budget: int, outputs: list[str], end: str, num_turns: int, tmp_path: Path
) -> None:
    episode, speaker = play(tmp_path, lines(*outputs), budget)
    assert (episode.end, len(episode.turns)) == (end, num_turns)
    assert len(speaker.asked) == num_turns == len(outputs)
    assert [turn.output for turn in episode.turns] == outputs


@pytest.mark.parametrize(
    ("output", "action", "content"),
    [
        ("<solution>a</solution>", "solution", "a"),
        ("<execute>x</execute> and <solution>a</solution>", "solution", "a"),
        ("<solution>a</solution>\n<solution> b </solution>", "solution", "a\nb"),
        ("<solution>a", "solution", ""),
        ("<execute>\nif x:\n    y\n</execute>", "execute", "if x:\n    y"),
        ("<execute>a = 1</execute> then <execute>a</execute>", "execute", "a = 1\na"),
        ("<execute>a = 1", "nothing", ""),
        ("<thought>only</thought>", "nothing", ""),
        ("", "nothing", ""),
    ],
)
def test_what_a_turn_does(output: str, action: str, content: str) -> None:
    assert action_of(output) == (action, content)


def test_the_model_sees_what_came_of_its_turns_and_what_is_left(tmp_path: Path) -> None:
    episode, speaker = play(tmp_path, lines(CODE, NOTHING, WRONG, RIGHT), 5)
    messages = speaker.asked[-1][0].messages
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]
    assert messages[0]["content"].endswith("\n\nTask:\nWhat is 6 times 7?")
    assert "at most 5 turns and may propose 2 solutions" in messages[0]["content"]
    assert messages[1]["content"] == CODE
    assert messages[2]["content"] == "Observation:\n42\n(Turns left: 4. Proposals left: 2.)"
    assert messages[4]["content"] == f"Observation:\n{prompts.NOT_UNDERSTOOD}\n(Turns left: 3. Proposals left: 2.)"
    assert messages[6]["content"] == f"Observation:\n{prompts.WRONG}\n(Turns left: 2. Proposals left: 1.)"
    assert [turn.right for turn in episode.turns] == [None, None, False, True]
    assert speaker.asked[0][0].stop == prompts.STOPS
    assert speaker.asked[0][0].temperature == 0.0


def test_an_example_is_shown_unless_it_is_not_wanted() -> None:
    code = Task(set="mbpp", id="1", prompt="Write f.", scoring="code", reference="assert f()")
    episode = Episode(set="a", id="1", budget=5)
    shown = [messages_of(task, episode, Manner())[0]["content"] for task in (TASK, code)]
    assert "22140" in shown[0]
    assert "def double(x)" in shown[1]
    without = messages_of(TASK, episode, Manner(example=False))[0]["content"]
    assert "22140" not in without
    assert len(without) < len(shown[0])


def test_a_full_context_is_the_agents_and_a_servers_error_is_not(tmp_path: Path) -> None:
    full, _ = play(tmp_path / "a", lines(CODE, Answer(text="", error="900 tokens", too_long=True)), 3)
    assert (full.end, full.error, len(full.turns)) == ("context", "900 tokens", 1)
    broken, _ = play(tmp_path / "b", lines(CODE, Answer(text="", error="HTTP 500 (5 tries)")), 3)
    assert (broken.end, broken.error, len(broken.turns)) == ("error", "HTTP 500 (5 tries)", 1)
    rates = [read_agent(tmp_path / part / "run").record.rates[0] for part in "ab"]
    assert [(r.num_tasks, r.num_solved, r.num_errors) for r in rates] == [(1, 0, 0), (0, 0, 1)]


def test_feedback_comes_after_each_turn_that_does_not_end_the_episode(tmp_path: Path) -> None:
    said: list[str] = []

    def advise(messages: Sequence[Message]) -> str:
        said.append(messages[0]["content"])
        return f" advice {len(said)} "

    episode, speaker = _advised(tmp_path, advise, "informed")
    assert [turn.feedback for turn in episode.turns] == ["advice 1", "advice 2", ""]
    last = speaker.asked[-1][0].messages
    assert last[2]["content"].endswith("(Turns left: 4. Proposals left: 2.)\n\nExpert feedback:\nadvice 1")
    assert "keep to yourself:\n42\n" in said[0]
    assert CODE in said[1]
    assert WRONG in said[1]


def _advised(tmp_path: Path, script: Script, feedback: Literal["blind", "informed"]) -> tuple[Episode, Scripted]:
    speaker = Scripted(lines(CODE, WRONG, RIGHT))
    cast = Cast(speaker=speaker, tools=PlainTools(), adviser=Scripted(script))
    settings = AgentSettings(
        speaker=Opposite(model="m"),
        adviser=Opposite(model="teacher"),
        budgets=(5,),
        manner=Manner(feedback=feedback),
    )
    run_agent(cast, [TASK], settings, tmp_path / "run")
    return read_agent(tmp_path / "run").episodes[0], speaker


def test_blind_feedback_does_not_know_the_answer_and_its_failure_is_an_error(tmp_path: Path) -> None:
    said: list[str] = []

    def advise(messages: Sequence[Message]) -> Answer:
        said.append(messages[0]["content"])
        return Answer(text="", error="HTTP 503")

    episode, _ = _advised(tmp_path, advise, "blind")
    assert "keep to yourself" not in said[0]
    assert (episode.end, episode.error) == ("error", "feedback: HTTP 503")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budgets": ()}, r"budgets: expected different numbers of turns from 1 to 50, got \[\]"),
        ({"budgets": (2, 2)}, r"budgets: .*got \[2, 2\]"),
        ({"budgets": (0,)}, r"budgets: .*got \[0\]"),
        ({"max_tokens": 0}, "max_tokens: expected 1 to 100,000, got 0"),
        ({"manner": Manner(feedback="blind")}, "feedback: expected a second model, and only then, got 'blind'"),
        ({"adviser": Opposite(model="t")}, "feedback: expected a second model, and only then, got 'none'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        AgentSettings(speaker=Opposite(model="m"), **settings)


def test_every_turn_is_written_to_the_letter(tmp_path: Path) -> None:
    odd = "<solution>\u2028\x85 \r\n\x00 \u00fc \\ud800</solution>"
    episode, _ = play(tmp_path, lines(odd), 1)
    assert episode.turns[0].output == odd
    line = (tmp_path / "run" / "episodes.jsonl").read_bytes()
    assert line.count(b"\n") == 1
    assert json.loads(line)["turns"][0]["output"] == odd
