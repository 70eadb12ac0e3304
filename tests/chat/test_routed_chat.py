"""Packs chosen turn by turn: the answers are those with the chosen packs on, and what was chosen is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_chat_page import Server, wait
from tokenizers.processors import TemplateProcessing

from blockexpand.cli.main import run
from blockexpand.errors import ChatError
from blockexpand.packs import route as routing
from blockexpand.packs.in_memory import enabled, only
from blockexpand.packs.route import Route, Rule
from blockexpand.serving import Conversation, Page, Sampling, Speaker, build_page, open_speaker, talk
from browser import browser, find_chromium
from chat_ground import SAID, write_packs

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def packs(expanded: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two packs of the chat's base."""
    return write_packs(expanded.parents[1] / "base", tmp_path_factory.mktemp("routed"))


@pytest.fixture
def speaker(expanded: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Speaker:
    """With these packs on; what is said here is short, so that less evidence decides."""
    eager = dataclasses.replace(Rule(), evidence=0.0)
    monkeypatch.setattr(routing, "Rule", lambda: eager)
    return open_speaker(expanded.parents[1] / "base", packs)


def said(speaker: Speaker, messages: Sequence[str], **more: Any) -> str:
    asked = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(messages)]
    return "".join(speaker.answer(asked, GREEDY, **more))


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
    list(speaker.answer(told, GREEDY, routed=heard.append))
    said(speaker, [SAID[1]], routed=heard.append)
    assert heard[2] == heard[3], "nor what the model is told first"


def test_no_token_comes_before_the_text(speaker: Speaker) -> None:
    """Tokenizers of most bases put one there."""
    heard: list[Route] = []
    said(speaker, [SAID[0]], routed=heard.append)
    backend: Any = speaker.tokenizer
    backend.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert speaker.tokenizer(SAID[0])["input_ids"][0] == 1
    said(speaker, [SAID[0]], routed=heard.append)
    assert heard[0].nats == heard[1].nats


def test_plain_text_is_routed_by_what_is_completed(expanded: Path, packs: list[Path], speaker: Speaker) -> None:
    plain = open_speaker(expanded.parents[1] / "base", packs, plain=True)
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
    name = "+".join(heard[0].names) or "base"
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
        next(plain.answer([{"role": "user", "content": "x"}], GREEDY, routed=lambda _: None))
    with pytest.raises(ChatError, match="has no packs to choose among"):
        Conversation(plain).command("/route auto")
    with pytest.raises(ChatError, match="/route was given 'on', expected auto, always or nothing"):
        Conversation(speaker).command("/route on")
    assert run(["chat", str(expanded), "--route", "auto"]) == 2
    assert "has no packs to choose among" in capsys.readouterr().err
    assert run(["chat", str(expanded), "--route", "on"]) == 2


def test_the_verb_routes(
    expanded: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SAID[2]}\n/route\n"))
    base = str(expanded.parents[1] / "base")
    arguments = ["chat", base, "--pack", str(packs[0]), "--route", "auto", "--temperature", "0", "--max-tokens", "4"]
    assert run(arguments) == 0
    assert "; the latest answer: " in capsys.readouterr().out.splitlines()[-1]


def test_the_verb_opens_a_page_that_routes(
    expanded: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[bool] = []
    monkeypatch.setattr("blockexpand.serving.serve_page", lambda _, page: served.append(page.routes))
    arguments = ["chat", str(expanded.parents[1] / "base"), "--pack", str(packs[0]), "--web"]
    assert run([*arguments, "--route", "auto"]) == run(arguments) == 0
    assert served == [True, False]


def test_the_page_is_told_first(speaker: Speaker, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    page = Page(sampling=GREEDY, routes=True, log=tmp_path / "log")
    client = TestClient(build_page(speaker, page), base_url="http://localhost")
    assert client.get("/facts").json()["routes"] is True
    asked = {"messages": [{"role": "user", "content": SAID[0]}], "sampling": {}, "routes": True, "packs": ["a", "b"]}
    lines = [json.loads(line) for line in client.post("/answer", json=asked).text.splitlines()]
    heard: list[Route] = []
    answer = said(speaker, [SAID[0]], routed=heard.append)
    assert lines[0]["route"].startswith("+".join(heard[0].names) or "base")
    assert "".join(line["text"] for line in lines[1:-1]) == answer
    assert json.loads((tmp_path / "log").read_text())["packs"] == list(heard[0].names)
    asked["packs"] = ["b"]
    first = json.loads(client.post("/answer", json=asked).text.splitlines()[0])
    assert ", a " not in first["route"], "of the packs that are ticked"
    assert enabled(speaker.model) == ("b",)
    asked["routes"] = "false"
    assert "route" not in client.post("/answer", json=asked).text
    asked["routes"] = False
    assert "route" not in client.post("/answer", json=asked).text


@pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")
def test_the_page_shows_a_badge(speaker: Speaker, tmp_path: Path) -> None:
    made = Server(speaker, routes=True)
    last = "document.querySelector('main section:last-child').lastElementChild"
    try:
        with browser(tmp_path / "profile") as tab:
            tab.open(f"http://127.0.0.1:{made.port}/", 1280, "light")
            wait(tab, "document.getElementById('routes') && document.getElementById('routes').checked")
            for is_routed in (True, False):
                tab.value(f"document.getElementById('text').value = {SAID[1]!r}")
                tab.value("document.getElementById('form').requestSubmit()")
                wait(tab, "document.getElementById('stop').disabled && document.querySelectorAll('.turn').length == 4")
                badge = tab.value(f"({last}.querySelector('.route') || {{}}).textContent || ''")
                answer = tab.value(f"{last}.lastElementChild.textContent")
                heard: list[Route] = []
                expected = said(speaker, [SAID[1]], **({"routed": heard.append} if is_routed else {}))
                assert answer.split() == expected.split()[:8]
                assert badge.startswith("b (base ") if is_routed else badge == ""
                assert tab.value("document.querySelectorAll('main section:first-child .route').length") == 0
                assert tab.value("document.scrollingElement.scrollWidth") <= 1280
                tab.value("document.getElementById('routes').click()")
                tab.value("document.getElementById('reset').click()")
    finally:
        made.close()
