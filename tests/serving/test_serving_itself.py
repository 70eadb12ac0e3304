"""The server itself: who may ask, in which order, what stops an answer, what is kept, how it ends."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from blockexpand.errors import ChatError
from blockexpand.serving import Service, Speaker, serve
from blockexpand.serving.text_stream import TextStream
from serving_ground import Served, served

ASKED = {"model": "base", "messages": [{"role": "user", "content": "the cat sat"}], "temperature": 0, "max_tokens": 100}


@pytest.fixture
def held(speaker: Speaker) -> Iterator[Callable[[], None]]:
    """The model is busy until this is called."""
    done = threading.Event()
    speaker._turn.acquire()

    def release() -> None:
        if not done.is_set():
            done.set()
            speaker._turn.release()

    yield release
    release()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_under_way(server: Served) -> int:
    return len(server.under_way._stops)


def test_a_key(speaker: Speaker) -> None:
    with served(speaker, key="sk-right") as server:
        assert server.ask("/health").status == 200, "says nothing but that it is there"
        for headers in (
            {},
            {"Authorization": "Bearer sk-wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic sk-right"},
            {"Authorization": "sk-right"},
            {"Authorization": "Bearer sk-right-and-more"},
            {"Authorization": "Bearer schl\xfcssel"},
        ):
            for path, body in (
                ("/v1/models", None),
                ("/v1/models/a", None),
                ("/v1/completions", {}),
                ("/v1/chat/completions", {}),
            ):
                said = server.ask(path, body, **headers)
                assert (said.status, said.error["code"]) == (401, "invalid_api_key"), (path, headers)
                assert said.headers["www-authenticate"] == "Bearer"
                assert "sk-" not in said.text
        assert server.ask("/v1/models", Authorization="bearer  sk-right").status == 200
        with openai.OpenAI(base_url=server.url, api_key="sk-right", max_retries=0) as client:
            assert client.chat.completions.create(**ASKED | {"max_tokens": 2}).choices  # ty: ignore[no-matching-overload]
        with openai.OpenAI(base_url=server.url, api_key="sk-wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="bears no key that is known here"):
                client.models.list()


def test_first_come_first_served(speaker: Speaker, tmp_path: Path, held: Callable[[], None]) -> None:
    """Ten at once, each with words of its own, of several models, streamed and not."""
    found: dict[int, str] = {}
    with served(speaker, log=tmp_path / "log") as server:
        words = [("cat", "dog", "rain", "house", "red")[n % 5] for n in range(10)]

        def ask(number: int) -> None:
            fields: dict[str, Any] = {
                "model": ("a", "base", "all")[number % 3],
                "stream": number % 2 == 1,
                "max_tokens": 6,
            }
            said = server.chat(words[number], **fields)
            events = said.events if fields["stream"] else [said.data]
            found[number] = "".join(
                (event["choices"][0].get("delta") or event["choices"][0].get("message") or {}).get("content", "")
                for event in events
            )

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda number=number: num_under_way(server) == number + 1)
        assert server.ask("/health").status == 200, "while all wait"
        assert len(server.ask("/v1/models").data["data"]) == 6
        held()
        for thread in threads:
            thread.join(60)
        order = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [entry["messages"][0]["content"] for entry in order] == words
        for number in range(10):
            alone = server.chat(words[number], model=("a", "base", "all")[number % 3], max_tokens=6).data
            assert found[number] == alone["choices"][0]["message"]["content"] == order[number]["answer"]
    assert num_under_way(server) == 0


def test_those_who_wait_hold_nobody_up(speaker: Speaker, held: Callable[[], None]) -> None:
    """More of them than there are threads; what needs no turn is still answered, also where it needs the tokenizer."""
    with served(speaker) as server:
        found: list[int] = []
        ask = lambda: found.append(server.chat("cat", model="a", max_tokens=1).status)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(45)]
        for thread in threads:
            thread.start()
        wait_until(lambda: num_under_way(server) == 45)
        assert server.chat("cat " * 300, model="a").error["code"] == "context_length_exceeded"
        assert found == []
        held()
        for thread in threads:
            thread.join(60)
        assert found == [200] * 45


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_stops_the_model(
    server: Served, speaker: Speaker, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    made: list[int] = []
    going, begun = threading.Event(), threading.Event()
    take = TextStream._take

    def slowly(self: TextStream, token: int) -> None:
        made.append(token)
        if len(made) == 3:
            begun.set()
            assert going.wait(30)
        take(self, token)

    monkeypatch.setattr(TextStream, "_take", slowly)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(ASKED | {"stream": stream}), {"Content-Type": "application/json"}
    )
    assert begun.wait(30)
    assert num_under_way(server) == 1
    stop = next(iter(server.under_way._stops))
    if stream:
        connection.getresponse().read(5)
    connection.close()
    wait_until(stop.is_set)
    going.set()
    wait_until(lambda: num_under_way(server) == 0)
    assert len(made) == 3, "the token under way was the last"
    monkeypatch.undo()
    assert not speaker._turn.locked()
    assert server.chat("x", model="base").status == 200


def test_who_leaves_the_queue_has_no_turn(speaker: Speaker, tmp_path: Path, held: Callable[[], None]) -> None:
    with served(speaker, log=tmp_path / "log") as server:
        first = threading.Thread(target=server.chat, args=("cat",), kwargs={"model": "a"})
        first.start()
        wait_until(lambda: num_under_way(server) == 1)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), {"Content-Type": "application/json"})
        wait_until(lambda: num_under_way(server) == 2)
        connection.close()
        wait_until(lambda: any(stop.is_set() for stop in server.under_way._stops))
        held()
        first.join(30)
        wait_until(lambda: num_under_way(server) == 0)
        assert server.chat("dog", model="a").status == 200
    said = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "log").read_text().splitlines()]
    assert said == ["cat", "dog"]


def test_the_end_ends_answers(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those under way and those that wait: none is taken for whole."""
    with served(speaker) as server:
        take = TextStream._take
        found: dict[int, Any] = {}

        def ending(self: TextStream, token: int) -> None:
            if len(self.tokens) == 4:
                wait_until(lambda: num_under_way(server) == 3)
                server.under_way.end()
            take(self, token)

        monkeypatch.setattr(TextStream, "_take", ending)

        def ask(number: int) -> None:
            found[number] = server.ask("/v1/chat/completions", ASKED | {"stream": number != 1})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            if number < 2:  # the third one ends them all
                wait_until(lambda number=number: num_under_way(server) == number + 1)
        for thread in threads:
            thread.join(30)
        assert found[0].status == 200
        assert "[DONE]" not in found[0].text
        assert 1 <= len(found[0].events) - 2 <= 5, "what was made until then"
        assert [event["choices"][0]["finish_reason"] for event in found[0].events[:-1]] == [None] * (
            len(found[0].events) - 1
        )
        for error in (found[0].events[-1]["error"], found[1].error, found[2].error):
            assert "the answer was stopped before its end, as the server ends" in error["message"]
        assert [found[n].status for n in (1, 2)] == [503, 503]
        assert server.chat("x", model="base").status == 503, "those that come now"


def test_what_is_kept(speaker: Speaker, server: Served, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with served(speaker, log=log, key="sk-right") as logged:
        bearing = {"Authorization": "Bearer sk-right"}
        asked = ASKED | {"model": "auto", "max_tokens": 3}
        said = [logged.ask("/v1/chat/completions", asked | {"stream": stream}, **bearing) for stream in (False, True)]
        logged.ask(
            "/v1/completions", {"model": "a", "prompt": ["cat", [5, 6]], "temperature": 0, "max_tokens": 2}, **bearing
        )
        logged.ask("/v1/completions", {"model": "nobody", "prompt": "x"}, **bearing)
    text = log.read_text()
    assert "sk-right" not in text
    entries = [json.loads(line) for line in text.splitlines()]
    chosen = said[0].data["choices"][0]
    expected = {
        "model": "auto", "messages": ASKED["messages"], "answer": chosen["message"]["content"],
        "finish_reason": "length", "usage": said[0].data["usage"], **chosen["blockexpand"],
    }  # fmt: skip
    assert entries[:2] == [expected, expected]
    assert [(e["model"], e["prompt"], e["packs"], e["usage"]["completion_tokens"]) for e in entries[2:]] == [
        ("a", "cat", ["a"], 2), ("a", [5, 6], ["a"], 2)
    ]  # fmt: skip


def test_a_log_that_is_full_is_told(speaker: Speaker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with served(speaker, log=log) as server:
        log.unlink()
        log.mkdir()
        said = server.chat("x", model="base")
        assert (said.status, said.error["type"]) == (500, "server_error")
        assert "cannot be written: Is a directory; choose another --log" in said.error["message"]
        streamed = server.chat("x", model="base", stream=True)
        assert streamed.status == 200
        assert "cannot be written" in streamed.events[-1]["error"]["message"]
        assert "[DONE]" not in streamed.text


def test_what_goes_wrong_in_us_is_an_error_too(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of paper")

    with served(speaker) as server:
        with monkeypatch.context() as changed:
            changed.setattr(speaker.model, "generate", broken)
            said = server.chat("x", model="base")
            assert said.status == 500
            assert said.error["type"] == "server_error"
            assert "the server failed: RuntimeError out of paper" in said.error["message"]
            assert server.chat("x", model="base", stream=True).status == 500
        assert server.chat("x", model="base").status == 200, "and the next is answered"


def test_a_taken_port(speaker: Speaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChatError, match=rf"127.0.0.1:{port} cannot be listened on: .*Address already in use"):
            serve(speaker, Service(port=port), lambda *_: None)
