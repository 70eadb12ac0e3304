"""What is refused, in OpenAI's shape: the message has the value, status and code are those that clients know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import ChatError, ServingError
from blockexpand.packs import About, extract
from blockexpand.serving import Service, Speaker, build_service, names_of, open_speaker
from serving_ground import Served, served

USER = {"role": "user", "content": "x"}
CHAT = {"model": "a", "messages": [USER]}
TEXT = {"model": "a", "prompt": "x"}
UNSUPPORTED = "unsupported_parameter"

CHATS: list[tuple[dict[str, Any], str, str | None, str | None]] = [
    ({"n": 2}, "n is 2, which this server cannot do; expected 1", "n", UNSUPPORTED),
    ({"logprobs": True}, "logprobs is True, which this server cannot do; expected false", "logprobs", UNSUPPORTED),
    ({"tools": [{"type": "function"}]}, "tools is [{'type': 'function'}], which", "tools", UNSUPPORTED),
    ({"tool_choice": "required"}, "expected \"none\" or \"auto\"", "tool_choice", UNSUPPORTED),
    ({"response_format": {"type": "json_object"}}, "expected {\"type\": \"text\"}", "response_format", UNSUPPORTED),
    ({"logit_bias": {"5": 1}}, "logit_bias is {'5': 1}, which", "logit_bias", UNSUPPORTED),
    ({"presence_penalty": 0.5}, "presence_penalty is 0.5, which", "presence_penalty", UNSUPPORTED),
    ({"temprature": 1}, "no field 'temprature' here, given 1; did you mean 'temperature'?", "temprature",
     "unknown_parameter"),
    ({"top_k": -1}, "top_k is -1, expected a whole number", "top_k", "invalid_value"),
    ({"temperature": 11}, "temperature is 11, expected 0, or 0.01 to 2", "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature is 'hot', expected a number", "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p is 0, expected more than 0", "top_p", "invalid_value"),
    ({"seed": 2**63}, f"seed is {2**63}, expected 0 to 2^63 - 1", "seed", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens is 0, expected a whole number, 1 or more", "max_tokens", "invalid_value"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens is 3, expected the value of max_completion_tokens, 4",
     "max_tokens", "invalid_value"),
    ({"stop": ""}, "stop is '', expected a text, or a list of at most 64", "stop", "invalid_value"),
    ({"stop": ["a", 1]}, "stop is ['a', 1], expected", "stop", "invalid_value"),
    ({"stream": "yes"}, "stream is 'yes', expected true or false", "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "expected it with stream alone", "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"usage": 1}}, "stream_options.usage is 1", "stream_options.usage",
     "invalid_value"),
    ({"model": None}, "model is None, expected the name of a model; GET /v1/models lists them", "model",
     "invalid_value"),
    ({"messages": []}, "messages is [], expected a list of messages, not empty", "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages[0] is 'hi', expected an object", "messages[0]", "invalid_value"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].role is 'tool', expected system, developer",
     "messages[1].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is None", "messages[0].content", "invalid_value"),
    ({"messages": [{**USER, "tool_calls": [1]}]}, "messages[0].tool_calls is [1]", "messages[0].tool_calls",
     "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "expected a text, or a list of parts",
     "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": "a\ud83d"}]}, "it has half a surrogate pair", "messages[0].content",
     "invalid_value"),
    ({"messages": [{"role": "user", "content": "cat " * 200}]}, "the messages and the answer come to 203 + 1 = "
     "204 tokens, and the model reads 128 in all; shorten the messages", "messages", "context_length_exceeded"),
    ({"max_tokens": 125}, "the messages and the answer come to 4 + 125 = 129 tokens, and the model reads 128 in all; "
     "shorten the messages, or ask for 124 at most", "messages", "context_length_exceeded"),
]  # fmt: skip

TEXTS: list[tuple[dict[str, Any], str, str | None, str | None]] = [
    ({"best_of": 2}, "best_of is 2, which this server cannot do; expected 1", "best_of", UNSUPPORTED),
    ({"messages": [USER]}, "there is no field 'messages' here", "messages", "unknown_parameter"),
    ({"logprobs": 21}, "logprobs is 21, expected at most 20", "logprobs", "invalid_value"),
    ({"logprobs": 1, "stream": True}, "logprobs is 1, expected none with stream", "logprobs", "invalid_value"),
    ({"echo": True, "stream": True}, "echo is True, expected none with stream", "echo", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens is 0, expected a whole number, 1 or more", "max_tokens", "invalid_value"),
    ({"prompt": None}, "prompt is None, expected a text, a list of token ids", "prompt", "invalid_value"),
    ({"prompt": []}, "prompt is [], expected", "prompt", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt is ['a', 1], expected", "prompt", "invalid_value"),
    ({"prompt": "\udc00"}, "half a surrogate pair", "prompt", "invalid_value"),
    ({"prompt": ""}, "no token comes of the prompt, expected one or more", "prompt", None),
    ({"prompt": [5, 96]}, "the prompt has the token 96, expected 0 to 95", "prompt", "invalid_value"),
    ({"prompt": ["a", "cat " * 120], "max_tokens": 9}, "the prompt and the answer come to 120 + 9 = 129 tokens",
     "prompt", "context_length_exceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message", "param", "code"), CHATS, ids=lambda value: str(value)[:40])
def test_chats(server: Served, change: dict[str, Any], message: str, param: str | None, code: str | None) -> None:
    check(server, "/v1/chat/completions", CHAT | change, (message, param, code))


@pytest.mark.parametrize(("change", "message", "param", "code"), TEXTS, ids=lambda value: str(value)[:40])
def test_texts(server: Served, change: dict[str, Any], message: str, param: str | None, code: str | None) -> None:
    check(server, "/v1/completions", TEXT | change, (message, param, code))


def check(server: Served, path: str, asked: dict[str, Any], told: tuple[str, str | None, str | None]) -> None:
    said = server.ask(path, asked)
    assert said.status == 400, said.text
    message, param, code = told
    assert message in said.error["message"]
    assert (said.error["type"], said.error["param"], said.error["code"]) == ("invalid_request_error", param, code)
    if not {"stream", "stream_options"} & set(asked):
        assert server.ask(path, asked | {"stream": True}).status == 400, "before a stream begins"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "the request is not JSON: JSONDecodeError"),
        ("[" * 100_000, "the request is not JSON: RecursionError"),
        (b"\xff\xfe{", "the request is not JSON: UnicodeDecodeError"),
        ("[]", "the request is a JSON list; expected an object"),
        ("x" * 4_000_001, "the request has 4,000,001 bytes, expected at most 4,000,000"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_request(server: Served, path: str, body: Any, message: str) -> None:
    said = server.ask(path, body)
    assert said.status == 400
    assert message in said.error["message"]


def test_other_models_and_addresses(server: Served) -> None:
    said = server.chat("x", model="aa")
    assert (said.status, said.error["code"], said.error["param"]) == (404, "model_not_found", "model")
    assert said.error["message"].startswith("there is no model 'aa' here; ")
    assert server.chat("x", model="aa", stream=True).status == 404
    assert server.ask("/v1/models/aa").status == 404
    said = server.ask("/v1/embeddings", {"input": "x"})
    assert said.status == 404
    assert (
        "there is no POST /v1/embeddings here (Not Found); expected POST /v1/chat/completions" in said.error["message"]
    )
    said = server.ask("/v1/completions")
    assert said.status == 405
    assert "there is no GET /v1/completions here (Method Not Allowed)" in said.error["message"]


def test_other_sites(server: Served) -> None:
    said = server.ask("/v1/chat/completions", CHAT, **{"Content-Type": "text/plain"})
    assert (said.status, said.error["message"]) == (
        400,
        "the request is of type 'text/plain', expected application/json",
    )
    for path in ("/health", "/v1/models"):
        assert server.ask(path, Host="evil.example").status == 400
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
            assert server.ask(path, Host=host).status == 200
    with_origin = server.ask("/v1/models", Origin="https://evil.example")
    assert not any(name.startswith("access-control") for name in with_origin.headers)


def test_a_model_without_a_template_completes_and_does_not_chat(tiny: Path) -> None:
    speaker = open_speaker(tiny, plain=True)
    speaker.tokenizer.chat_template = None
    with served(speaker, name="plain") as server:
        said = server.chat("x", model="plain")
        assert said.status == 400
        assert "tiny has no chat template" in said.error["message"]
        assert server.complete("the cat", model="plain").status == 200
        assert [entry["id"] for entry in server.ask("/v1/models").data["data"]] == ["plain"], "and has no base inside"


def test_what_the_template_does_not_take(tiny: Path) -> None:
    speaker = open_speaker(tiny, plain=True)
    speaker.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with served(speaker) as server:
        said = server.chat("x", model="tiny")
        assert said.status == 400
        assert "roles must alternate" in said.error["message"]


def test_names_that_would_mean_two_things(speaker: Speaker, expanded: Path, tiny: Path, tmp_path: Path) -> None:
    assert list(names_of(speaker)) == ["tiny", "base", "a", "b", "all", "auto"]
    assert names_of(speaker)["tiny"] == names_of(speaker)["all"]
    assert names_of(speaker, routes=True)["tiny"] == names_of(speaker)["auto"]
    with pytest.raises(
        ServingError, match=r"would be called 'b', which already is .* \(there are base, a, b, all, auto\)"
    ):
        names_of(speaker, "b")
    link = tmp_path / "base"
    link.symlink_to(expanded)
    inside = open_speaker(expanded, plain=True)
    assert list(names_of(inside)) == ["run", "base"]
    with pytest.raises(ServingError, match="would be called 'base', .* give one with --name"):
        names_of(inside, "base")
    pack = extract(expanded, tmp_path / "auto", About(name="auto")).folder
    with pytest.raises(ServingError, match="the pack 'auto' has a name that the server itself gives"):
        names_of(open_speaker(tiny, [pack], plain=True))
    packed = open_speaker(tiny, [extract(expanded, tmp_path / "tiny", About(name="tiny")).folder], plain=True)
    assert list(names_of(packed)) == ["base", "tiny", "all", "auto"], "the folder's name is the pack's"


def test_what_cannot_be_served(speaker: Speaker, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="tiny has no packs to choose among"):
        build_service(open_speaker(tiny, plain=True), Service(routes=True))
    with pytest.raises(ChatError, match="the log .*/nowhere/log cannot be written: No such file"):
        build_service(speaker, Service(log=tmp_path / "nowhere" / "log"))
    for key in ("", "two\nlines", "schlüssel"):
        with pytest.raises(ServingError, match="key: expected printable ASCII text, got something else") as told:
            Service(key=key)
        assert not key or key not in str(told.value)


def test_errors_are_whole_json(server: Served) -> None:
    """Whatever was sent: values are shown, and cut."""
    said = server.chat("x", model="y" * 100_000)
    assert said.status == 404
    assert len(said.error["message"]) < 1300
    assert json.loads(server.chat("x", model='"\n\u2028').text)["error"]["code"] == "model_not_found"
