"""A model behind an address: what is sent, and what stands in the answer when it does not help."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from blockexpand.errors import EndpointError
from blockexpand.evaluation.endpoint import Answer, Endpoint, Request, ask_all, cut_at
from servers import Raw, closed_port_url, completion, failure, serving

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again without waiting, and the environment's key is never sent."""
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")


def ask(url: str, stop: tuple[str, ...] = (), **settings: Any) -> Answer:
    endpoint = Endpoint(url, "m", **settings)
    answer = endpoint.ask(Request(messages=HELLO, max_tokens=5, temperature=0.25, stop=stop))
    endpoint.close()
    return answer


def test_a_question_goes_out_and_its_answer_comes_back() -> None:
    with serving([completion("hi there \u00fc\n---\ntwo"), completion("x", usage=None)]) as server:
        answer = ask(server.url, ("\n---",), key="sk-1")
        bare = ask(server.url)
    assert (answer.text, answer.error) == ("hi there \u00fc", None)
    assert (answer.prompt_tokens, answer.completion_tokens, bare.prompt_tokens) == (11, 7, 0)
    said = {"model": "m", "messages": HELLO, "max_tokens": 5, "temperature": 0.25}
    assert server.asked == [{**said, "stop": ["\n---"]}, said]
    assert server.headers[0]["authorization"] == "Bearer sk-1"
    assert "authorization" not in server.headers[1]
    assert cut_at("a b c", ("c", "b")) == "a "


def test_a_path_of_the_address_is_kept() -> None:
    with serving(lambda _: completion("x")) as server:
        assert ask(server.url + "/v1/").text == "x"
        assert "HTTP 404" in (ask(server.url + "/elsewhere").error or "")


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_tried_again_then_recorded(status: int) -> None:
    with serving([failure(status), completion("at last")]) as server:
        assert ask(server.url).text == "at last"
    with serving(lambda _: failure(status, "slow down")) as server:
        answer = ask(server.url, retries=2)
        assert (answer.text, answer.error, len(server.asked)) == ("", f"HTTP {status}: slow down", 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_what_does_not_pass_is_asked_once(status: int) -> None:
    with serving([failure(status, "no such model: m")]) as server:
        assert ask(server.url).error == f"HTTP {status}: no such model: m"


@pytest.mark.parametrize(
    "trouble",
    [
        Raw(b"<html>oops</html>"), Raw(b"\xff\xfe"), Raw(b"[1, 2]"), Raw(b'{"choices": []}'),
        Raw(b'{"choices"', promised=500),
        completion("x", choices=[{"message": {"content": None}}]), completion("x", choices=[3]),
    ],
)  # fmt: skip
def test_a_reply_that_is_no_completion_is_an_error(trouble: Raw) -> None:
    with serving(lambda _: trouble) as server:
        answer = ask(server.url, retries=0)
    assert answer.text == ""
    assert answer.error


def test_a_silent_server_runs_out_of_time() -> None:
    free = threading.Event()

    def never(body: dict[str, Any]) -> Raw:
        free.wait(5)
        return completion("late")

    with serving(never) as server:
        answer = ask(server.url, timeout_seconds=0.1, retries=1)
        free.set()
    assert answer.error == "no answer within 0.1 s"


def test_nobody_there_is_an_error_at_once_when_checked_and_a_record_when_asked() -> None:
    url = closed_port_url()
    with pytest.raises(EndpointError, match=url):
        Endpoint(url, "m").check()
    assert "no connection" in (ask(url, retries=0).error or "")


def test_a_refused_key_is_said_without_showing_it() -> None:
    told = failure(401, "Incorrect API key provided: sk-secret. Find yours at")
    with serving([told], models=told) as server:
        asked = Endpoint(server.url, "m", key="sk-secret")
        with pytest.raises(EndpointError, match=r"HTTP 401: Incorrect API key provided: \(the key\)"):
            asked.check()
        answer = asked.ask(Request(messages=HELLO, max_tokens=5))
    assert "sk-secret" not in repr(asked) + str(answer)


@pytest.mark.parametrize("listing", [Raw(b'{"data": []}'), failure(404), failure(500), Raw(b"nothing")])
def test_a_server_need_not_list_its_models(listing: Raw) -> None:
    with serving([], models=listing) as server:
        Endpoint(server.url, "m").check()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "'localhost:8000'"), ({"url": "ftp://a.b"}, "'ftp://a.b'"), ({"url": "http://"}, "'http://'"),
        ({"url": "http://a:99999"}, "'http://a:99999'"), ({"url": "https://me:secret@api.example"}, "api.example"),
        ({"url": "https://api.example/v1?api_key=secret"}, "api.example"), ({"model": ""}, "''"),
        ({"timeout_seconds": 0}, "got 0"), ({"retries": -1}, "got -1"), ({"key": "se\ncret"}, "key"),
        ({"key": "\u00e9t\u00e9-secret"}, "key"),
    ],
)  # fmt: skip
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

    requests = [Request(messages=[{"role": "user", "content": f"{n}\ud800"}], max_tokens=1) for n in range(8)]
    with serving(echo) as server:
        answers = list(ask_all(Endpoint(server.url, "m"), requests, at_once=4))
    assert [one.text for one in answers] == [f"{n}?" for n in range(8)]  # half a character is a question mark
