"""Packs chosen turn by turn: the answers are those with the chosen packs on, and what was chosen is shown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers.processors import TemplateProcessing

from blockexpand.cli.main import run
from blockexpand.errors import ChatError
from blockexpand.packs import route as routing
from blockexpand.packs.in_memory import enable, enabled, only
from blockexpand.packs.route import Route
from blockexpand.records.pack import name_of
from blockexpand.serving import Conversation, Speaker, open_speaker, talk
from serving_ground import GREEDY, SAID, answered


@pytest.fixture
def speaker(speaker: Speaker) -> Speaker:
    """The same model to chat with, all packs on whatever was asked of it before."""
    enable(speaker.model)
    return Speaker(speaker.model, speaker.tokenizer, speaker.facts)


def said(speaker: Speaker, messages: Sequence[str], **more: Any) -> str:
    asked = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(messages)]
    return answered(speaker, asked, **more)


def test_answers_are_those_of_the_chosen_packs(speaker: Speaker) -> None:
    chosen = set()
    for text in SAID:
        heard: list[Route] = []
        routed = said(speaker, [text], routed=heard.append)
        (found,) = heard
        assert found.nats[found.names] == min(found.nats.values())
        assert enabled(speaker.model) == ("a", "b"), "the switches stay"
        chosen.add(found.names)
        with only(speaker.model, *found.names):
            assert said(speaker, [text]) == routed
        tokens = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert routing.route(speaker.model, tokens).nats == found.nats, "the text alone is scored, not the template"
    assert chosen == {("a",), ("b",), ()}, "another text, other packs"


def test_only_what_the_person_said_is_scored(speaker: Speaker) -> None:
    heard: list[Route] = []
    said(speaker, [SAID[0], SAID[2], SAID[1]], routed=heard.append)
    said(speaker, [f"{SAID[0]}\n{SAID[1]}"], routed=heard.append)
    assert heard[0] == heard[1], "answers in between count for nothing"
    told = [{"role": "system", "content": SAID[2]}, {"role": "user", "content": SAID[1]}]
    answered(speaker, told, routed=heard.append)
    said(speaker, [SAID[1]], routed=heard.append)
    assert heard[2] == heard[3], "nor what the model is told first"


def test_no_token_comes_before_the_text(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers of most bases put one there."""
    heard: list[Route] = []
    said(speaker, [SAID[0]], routed=heard.append)
    backend: Any = speaker.tokenizer
    monkeypatch.setattr(
        backend.backend_tokenizer, "post_processor", TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    )
    assert speaker.tokenizer(SAID[0])["input_ids"][0] == 1
    said(speaker, [SAID[0]], routed=heard.append)
    assert heard[0].nats == heard[1].nats


def test_plain_text_is_routed_by_what_is_completed(tiny: Path, packs: list[Path], speaker: Speaker) -> None:
    plain = open_speaker(tiny, packs, plain=True, dtype="float32")
    heard: list[Route] = []
    said(plain, [SAID[0], SAID[2], SAID[1]], routed=heard.append)
    said(plain, [SAID[1]], routed=heard.append)
    assert heard[0] == heard[1]
    assert heard[0].nats != {}


def test_of_the_packs_that_are_on(speaker: Speaker) -> None:
    heard: list[Route] = []
    said(speaker, [SAID[0]], packs=["b"], routed=heard.append)
    assert set(heard[0].nats) == {(), ("b",)}
    said(speaker, [SAID[0]], packs=[], routed=heard.append)
    assert heard[1].names == ()
    said(speaker, [SAID[0]], as_base=True, routed=heard.append)
    assert len(heard) == 2, "who asks for the base gets the base"


def test_too_little_to_choose_by_is_the_bases(speaker: Speaker) -> None:
    file = io.StringIO()
    conversation = Conversation(speaker, GREEDY)
    conversation.routes = True
    talk(conversation, ["cat"], Console(file=file, width=200, force_terminal=True))
    assert "base (too little was said to choose by)" in file.getvalue()


def test_the_terminal_says_who_answers_and_a_pipe_does_not(speaker: Speaker, tmp_path: Path) -> None:
    shown = {}
    for is_terminal in (True, False):
        file = io.StringIO()
        conversation = Conversation(speaker, GREEDY, log=tmp_path / f"log-{is_terminal}")
        lines = ["/route auto", SAID[0], "/route", "/route always", SAID[1], "/route"]
        talk(conversation, lines, Console(file=file, width=200, force_terminal=is_terminal, no_color=True))
        shown[is_terminal] = file.getvalue()
        first = [json.loads(line) for line in (tmp_path / f"log-{is_terminal}").read_text().splitlines()]
        assert [entry.get("packs") for entry in first][3:] == [None, None], "no packs are noted where none are chosen"
        assert [entry["role"] for entry in first if "packs" in entry] == ["assistant"]
    heard: list[Route] = []
    answer = said(speaker, [SAID[0]], routed=heard.append)
    name = name_of(heard[0].names)
    lines = shown[False].splitlines()
    assert lines[0] == "each turn's packs are chosen by what was said"
    assert lines[1].split() == answer.split()
    assert lines[2].startswith(f"each turn's packs are chosen by what was said; the latest answer: {name} (base ")
    assert lines[3].startswith("the packs that are on answer")
    assert lines[5] == "the packs that are on answer"
    assert f"{name} (base " in shown[True].splitlines()[1]
    assert shown[True].count(f"{name} (base ") == 3, "once before the answer, and twice by /route"
    assert first[2]["packs"] == list(heard[0].names)


def test_what_cannot_be_routed(expanded: Path, speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    plain = open_speaker(expanded)
    with pytest.raises(ChatError, match=r"run has no packs to choose among; .* give --pack PACK"):
        said(plain, ["x"], routed=lambda _: None)
    with pytest.raises(ChatError, match="has no packs to choose among"):
        Conversation(plain).command("/route auto")
    with pytest.raises(ChatError, match="/route was given 'on', expected auto, always or nothing"):
        Conversation(speaker).command("/route on")
    assert run(["chat", str(expanded), "--route", "auto"]) == 2
    assert "has no packs to choose among" in capsys.readouterr().err
    assert run(["chat", str(expanded), "--route", "on"]) == 2


def test_the_verb_routes(
    tiny: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SAID[2]}\n/route\n"))
    arguments = [
        "chat",
        str(tiny),
        "--pack",
        str(packs[0]),
        "--route",
        "auto",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    ]
    assert run(arguments) == 0
    assert "; the latest answer: " in capsys.readouterr().out.splitlines()[-1]
