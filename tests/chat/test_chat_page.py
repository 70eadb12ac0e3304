# ruff: noqa: E501 (the page's own expressions)
"""The page: its three addresses, what it refuses, and the real thing in a browser where there is one."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from blockexpand.errors import ChatError
from blockexpand.serving import Page, Sampling, Speaker, build_page, open_speaker, serve_page
from browser import browser, find_chromium

GREEDY = Sampling(temperature=0, max_tokens=8)
ASKED = {"messages": [{"role": "user", "content": "the cat sat"}], "sampling": {}, "as_base": False, "packs": None}


class Server:
    """The page on a port of its own, in this process."""

    def __init__(self, speaker: Speaker, **more: Any) -> None:
        self.page = Page(sampling=GREEDY, **more)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(build_page(speaker, self.page), log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            data = body if isinstance(body, str) else json.dumps(body)
            connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="module")
def server(speaker: Speaker) -> Iterator[Server]:
    made = Server(speaker)
    yield made
    made.close()


def answer_of(text: str) -> str:
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1] == {"end": True}, lines
    return "".join(line["text"] for line in lines[:-1])


def test_the_page_fetches_nothing_of_others(server: Server) -> None:
    status, text, headers = server.ask("/")
    assert status == 200
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_facts_are_in_view(server: Server) -> None:
    facts = json.loads(server.ask("/facts")[1])
    assert facts["blocks"][2] == "after1.0"
    assert facts["measured"][0].startswith("this run: gain +0.750")
    assert (facts["packs"], facts["logged"], facts["sampling"]["temperature"]) == ({}, None, 0)


def test_both_sides_answer_as_the_model_would(server: Server, speaker: Speaker) -> None:
    for as_base in (False, True):
        status, text, _ = server.ask("/answer", {**ASKED, "as_base": as_base})
        assert status == 200
        assert answer_of(text) == "".join(speaker.answer(ASKED["messages"], GREEDY, as_base=as_base))  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "cannot be understood: JSONDecodeError"),
        ("[]", "cannot be understood: TypeError"),
        ({}, "cannot be understood: KeyError 'messages'"),
        ({**ASKED, "messages": []}, "has no messages"),
        ({**ASKED, "messages": [{"role": "root", "content": "x"}]}, "of other roles than system"),
        ({**ASKED, "sampling": {"temperature": 99}}, "temperature is 99.0, expected 0 to 10"),
        ({**ASKED, "sampling": {"top_p": "x"}}, "top_p is 'x', expected a number"),
        ("x" * 4_000_001, "4,000,001 bytes, expected at most 4,000,000"),
    ],
)
def test_broken_questions_are_refused(server: Server, body: Any, message: str) -> None:
    status, text, _ = server.ask("/answer", body)
    assert status == 400
    assert message in json.loads(text)["error"]


def test_other_sites_are_refused(server: Server) -> None:
    status, text, _ = server.ask("/answer", ASKED, **{"Content-Type": "text/plain"})
    assert (status, json.loads(text)["error"]) == (
        400,
        "the request is of type 'text/plain', expected application/json",
    )
    assert server.ask("/facts", Host="evil.example")[0] == 400


def test_what_goes_wrong_is_told_in_the_stream(server: Server) -> None:
    long = [{"role": "user", "content": "cat " * 2000}]
    assert "the model reads" in server.ask("/answer", {**ASKED, "messages": long})[1]
    assert "has no packs" in server.ask("/answer", {**ASKED, "packs": ["code"]})[1]


def test_the_log_is_kept_only_where_asked(speaker: Speaker, tmp_path: Path) -> None:
    made = Server(speaker, log=tmp_path / "log")
    try:
        text = answer_of(made.ask("/answer", ASKED)[1])
    finally:
        made.close()
    entry = json.loads((tmp_path / "log").read_text())
    assert (entry["messages"], entry["answer"]) == (ASKED["messages"], text)


def test_who_leaves_stops_the_model(speaker: Speaker) -> None:
    made = Server(speaker)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", made.port)
        body = json.dumps({**ASKED, "sampling": {"max_tokens": 100}})
        connection.request("POST", "/answer", body, {"Content-Type": "application/json"})
        connection.getresponse().read(5)
        connection.close()
        deadline = time.monotonic() + 10
        while speaker._turn.locked() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not speaker._turn.locked()
        assert made.ask("/facts")[0] == 200
    finally:
        made.close()


def test_a_taken_port_is_named(speaker: Speaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChatError, match=rf"127.0.0.1:{port} cannot be listened on: .*Address already in use"):
            serve_page(speaker, Page(port=port))
    with pytest.raises(ChatError, match="127.0.0.1:70000 cannot be listened on"):
        serve_page(speaker, Page(port=70000))


def test_without_the_extra_it_is_named(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(
        ChatError, match=r"uvicorn is not installed, which --web needs; pip install 'blockexpand\[chat\]'"
    ):
        build_page(speaker, Page())


_SEND = "(() => { const t = document.getElementById('text'); t.value = 'the cat sat'; document.getElementById('form').requestSubmit() })()"
_SAID = "[...document.querySelectorAll('main section')].map(s => s.lastElementChild.className + ':' + s.lastElementChild.textContent).join('|')"


@pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")
def test_base_and_expanded_stand_side_by_side(expanded: Path, tmp_path: Path) -> None:
    from blockexpand import packs

    packs.extract(expanded, tmp_path / "code")
    speaker = open_speaker(expanded.parents[1] / "base", [tmp_path / "code"])
    made = Server(speaker)
    try:
        with browser(tmp_path / "profile") as tab:
            tab.open(f"http://127.0.0.1:{made.port}/", 1280, "light")
            wait(tab, "document.querySelectorAll('main section').length == 2")
            assert tab.value("document.querySelectorAll('#blocks i.new').length") == 1
            assert tab.value("document.getElementById('facts').textContent").endswith(
                "nothing said here is kept or sent"
            )
            tab.value(_SEND)
            wait(tab, "document.getElementById('stop').disabled && document.querySelectorAll('.turn').length == 4")
            base, mine = tab.value(_SAID).split("|")
            assert base == "turn:" + "".join(speaker.answer(ASKED["messages"], GREEDY, as_base=True))  # ty: ignore[invalid-argument-type]
            assert mine == "turn:" + "".join(speaker.answer(ASKED["messages"], GREEDY))  # ty: ignore[invalid-argument-type]
            assert base != mine
            tab.value("document.querySelector('#packs input').click()")
            tab.value("document.getElementById('reset').click()")
            tab.value(_SEND)
            wait(tab, "document.getElementById('stop').disabled && document.querySelectorAll('.turn').length == 4")
            base, mine = tab.value(_SAID).split("|")
            assert base == mine
            assert tab.value("document.scrollingElement.scrollWidth") <= 1280
            assert len(tab.photograph()) > 10_000
    finally:
        made.close()


def wait(tab: Any, condition: str) -> None:
    deadline = time.monotonic() + 20
    while not tab.value(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)
