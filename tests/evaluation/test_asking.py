"""A model behind an address: what is sent, what is tried again, and what is said when it does not help."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from blockexpand.errors import EndpointError
from blockexpand.evaluation.endpoint import Endpoint, Request, ask_all, cut_at
from servers import Raw, closed_port_url, completion, failure, serving

HELLO = [{"role": "user", "content": "hello"}]


def endpoint(url: str, **settings: Any) -> tuple[Endpoint, list[float]]:
    """An endpoint that does not wait between tries, and the waits it would have made."""
    waits: list[float] = []
    return Endpoint(url, "m", **({"sleep": waits.append} | settings)), waits


def test_a_question_goes_out_and_its_answer_comes_back() -> None:
    with serving([completion("hi there")]) as server:
        asked, waits = endpoint(server.url, key="sk-1")
        answer = asked.chat(HELLO, 5, temperature=0.25, stop=("\n---",))
        asked.close()
    assert (answer.text, answer.error, answer.num_tries) == ("hi there", None, 1)
    assert (answer.prompt_tokens, answer.completion_tokens) == (11, 7)
    assert answer.seconds > 0
    assert server.asked == [
        {"model": "m", "messages": HELLO, "max_tokens": 5, "temperature": 0.25, "stop": ["\n---"]},
    ]
    assert server.headers[0]["authorization"] == "Bearer sk-1"
    assert waits == []


def test_without_a_key_none_is_sent_and_no_stop_texts_either() -> None:
    with serving([completion("x")]) as server:
        assert endpoint(server.url)[0].chat(HELLO, 5).text == "x"
    assert "authorization" not in server.headers[0]
    assert "stop" not in server.asked[0]


def test_a_path_of_the_address_is_kept() -> None:
    with serving(lambda _: completion("x")) as server:
        assert endpoint(server.url + "/v1/")[0].chat(HELLO, 5).text == "x"
        other = endpoint(server.url + "/elsewhere")[0].chat(HELLO, 5)
    assert other.error == "HTTP 404: no /elsewhere/chat/completions (1 try)"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (failure(429, "slow down"), "HTTP 429: slow down"),
        (failure(500), "HTTP 500: trouble"),
        (failure(503, "loading"), "HTTP 503: loading"),
        (failure(408), "HTTP 408"),
        (Raw(b"<html>oops</html>"), "the reply is not JSON: '<html>oops</html>'"),
        (Raw(b"\xff\xfe"), "the reply is not JSON"),
        (Raw(b"[" * 100_000), "the reply is not JSON"),
        (Raw(b"[1, 2]"), "the reply is a JSON list"),
        (Raw(b'{"choices": []}'), "no chat completion with text: {'choices': []}"),
        (completion("x", choices=[{"message": {"content": None}}]), "no chat completion with text"),
        (completion("x", choices=[3]), "no chat completion with text"),
        (Raw(b'{"choices"', promised=500), "the connection broke"),
    ],
)
def test_what_may_pass_is_tried_again_then_recorded(trouble: Raw, said: str) -> None:
    with serving([trouble, completion("at last")]) as server:
        asked, waits = endpoint(server.url)
        answer = asked.chat(HELLO, 5)
        assert (answer.text, answer.error, answer.num_tries) == ("at last", None, 2)
        assert len(waits) == 1
    with serving(lambda _: trouble) as server:
        asked, waits = endpoint(server.url, retries=2)
        answer = asked.chat(HELLO, 5)
    assert answer.text == ""
    assert answer.error is not None
    assert said in answer.error
    assert answer.error.endswith("(3 tries)")
    assert len(server.asked) == 3


def test_waits_double_and_follow_the_server() -> None:
    with serving(lambda _: failure(500)) as server:
        asked, waits = endpoint(server.url, retries=8)
        asked.chat(HELLO, 5)
    lowest = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(waits) == 8
    assert all(low <= wait <= 1.25 * low for low, wait in zip(lowest, waits, strict=True)), waits
    replies = [failure(429, Retry_After="7"), failure(429, Retry_After="9999"), failure(429, Retry_After="soon")]
    with serving([*replies, completion("x")]) as server:
        asked, waits = endpoint(server.url)
        assert asked.chat(HELLO, 5).text == "x"
    assert waits[:2] == [7.0, 60.0]
    assert 2 <= waits[2] <= 2.5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_what_does_not_pass_is_asked_once(status: int) -> None:
    with serving([failure(status, "no such model: m")]) as server:
        asked, waits = endpoint(server.url)
        answer = asked.chat(HELLO, 5)
    assert answer.error == f"HTTP {status}: no such model: m (1 try)"
    assert waits == []


def test_a_silent_server_runs_out_of_time() -> None:
    free = threading.Event()

    def never(body: dict[str, Any]) -> Raw:
        free.wait(5)
        return completion("late")

    with serving(never) as server:
        asked, waits = endpoint(server.url, timeout_seconds=0.1, retries=1)
        answer = asked.chat(HELLO, 5)
        free.set()
    assert answer.error == "no answer within 0.1 s (2 tries)"
    assert len(waits) == 1


def test_a_server_that_drips_runs_out_of_time() -> None:
    """Each byte comes within the time-out, the whole answer never would."""
    with serving([Raw(b" " * 200, drip_seconds=0.05)]) as server:
        asked, _ = endpoint(server.url, timeout_seconds=0.3, retries=0)
        start = time.monotonic()
        answer = asked.chat(HELLO, 5)
        assert time.monotonic() - start < 3
        asked.close()
    assert answer.error is not None
    assert "not complete in time" in answer.error


def test_an_endless_reply_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexpand.evaluation.exchange.MAX_REPLY_BYTES", 1000)
    with serving([Raw(b"x" * 5000)]) as server:
        answer = endpoint(server.url)[0].chat(HELLO, 5)
    assert answer.error == "the reply is longer than 1,000 bytes (1 try)"


def test_nobody_there_is_an_error_at_once_when_checked_and_a_record_when_asked() -> None:
    url = closed_port_url()
    asked, waits = endpoint(url, retries=1)
    with pytest.raises(EndpointError, match=f"cannot reach {url}: no connection: .*refused"):
        asked.check()
    assert waits == []
    answer = asked.chat(HELLO, 5)
    assert answer.error is not None
    assert "no connection" in answer.error
    assert len(waits) == 1


def test_a_refused_key_is_said_without_showing_it() -> None:
    told = failure(401, "Incorrect API key provided: sk-secret. Find yours at")
    with serving([told], models=told) as server:
        asked, _ = endpoint(server.url, key="sk-secret")
        with pytest.raises(EndpointError, match=r"refuses the key \(HTTP 401: Incorrect API key provided: \(the key\)"):
            asked.check()
        answer = asked.chat(HELLO, 5)
    assert "sk-secret" not in repr(asked)
    assert "sk-secret" not in str(answer)


@pytest.mark.parametrize("listing", [Raw(b'{"data": []}'), failure(404), failure(500), Raw(b"nothing")])
def test_a_server_need_not_list_its_models(listing: Raw) -> None:
    with serving([], models=listing) as server:
        endpoint(server.url)[0].check()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "'localhost:8000' is no address of a server"),
        ({"url": "ftp://a.b"}, "'ftp://a.b' is no address"),
        ({"url": "http://"}, "'http://' is no address"),
        ({"url": "http://a:99999"}, "'http://a:99999' is no address"),
        ({"url": "https://me:secret@api.example"}, "the address of api.example carries a name, a password or a query"),
        ({"url": "https://api.example/v1?api_key=secret"}, "the address of api.example carries"),
        ({"model": ""}, "model: expected the name of a model on the server, got ''"),
        ({"timeout_seconds": 0}, "timeout_seconds: expected more than 0, got 0"),
        ({"retries": -1}, "retries: expected 0 to 20, got -1"),
        ({"key": "se\ncret"}, "key: expected printable ASCII text"),
        ({"key": "\u00e9t\u00e9-secret"}, "key: expected printable ASCII text"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(EndpointError) as found:
        Endpoint(**({"url": "http://localhost:1", "model": "m"} | settings))
    assert said in str(found.value)
    assert "secret" not in str(found.value)


def test_many_are_asked_at_once_and_answered_in_order() -> None:
    together = threading.Barrier(4, timeout=5)

    def echo(body: dict[str, Any]) -> Raw:
        together.wait()
        return completion(body["messages"][0]["content"])

    requests = [Request(messages=[{"role": "user", "content": str(n)}], max_tokens=1) for n in range(8)]
    with serving(echo) as server:
        answers = list(ask_all(endpoint(server.url)[0], requests, at_once=4))
    assert [one.text for one in answers] == [str(n) for n in range(8)]


def test_half_a_character_is_sent_as_a_question_mark() -> None:
    with serving([completion("x")]) as server:
        assert endpoint(server.url)[0].chat([{"role": "user", "content": "a\ud800b"}], 5).text == "x"
    assert server.asked[0]["messages"][0]["content"] == "a?b"


def test_stop_texts_hold_where_the_server_ignores_them() -> None:
    with serving([completion("one\n---\ntwo")]) as server:
        assert endpoint(server.url)[0].chat(HELLO, 5, stop=("\nTask:", "\n---")).text == "one"
    assert cut_at("a b c", ("c", "b")) == "a "
    assert cut_at("a b c", ()) == "a b c"


def test_counts_that_are_none_are_nought() -> None:
    with serving([completion("x", usage=None), completion("x", usage={"prompt_tokens": "many"})]) as server:
        asked, _ = endpoint(server.url)
        assert [asked.chat(HELLO, 5).prompt_tokens for _ in range(2)] == [0, 0]


def test_the_answer_is_plain_json_text() -> None:
    with serving([Raw(json.dumps({"choices": [{"message": {"content": "\u00fc \u2713"}}]}).encode())]) as server:
        assert endpoint(server.url)[0].chat(HELLO, 5).text == "\u00fc \u2713"
