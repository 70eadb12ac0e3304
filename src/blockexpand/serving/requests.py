"""What a client asks for, read strictly.

In: the body of a request to chat/completions or completions. Out: `CompletionRequest`. Let pass: what changes nothing
of the answer (who asks, what to keep), and null. Refused, by name (ServingError): what would change the answer and
cannot be had, with the value that would not; fields that are not known; values of another type or out of bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from blockexpand.corpus.chats import content_text
from blockexpand.errors import ChatError, CorpusError, ServingError, nearest
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.speaker import Message

_COMPLETION_TOKENS = 16
"""Of a completion that does not say; OpenAI's reference of completions has it so."""
_MOST_LOGPROBS = 20
_MOST_STOPS = 64
_MOST_PROMPTS = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The role that the template is given."""

_READ = ("model", "stream", "stream_options", "temperature", "top_p", "max_tokens", "top_k", "seed", "stop")
_READ_CHAT = (*_READ, "messages", "max_completion_tokens")
_READ_TEXT = (*_READ, "prompt", "echo", "logprobs")
_LET_PASS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "prediction",
)  # fmt: skip

_CANNOT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
}  # fmt: skip
"""What cannot be had, and the values that ask for nothing."""
_CANNOT_CHAT = _CANNOT | {
    "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
_CANNOT_TEXT = _CANNOT | {"best_of": (1,), "suffix": ("",)}

TextPrompt = str | tuple[int, ...]
"""A text, or its tokens."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """One request."""

    model: str
    messages: tuple[Message, ...] = ()
    """Of a chat."""
    prompts: tuple[TextPrompt, ...] = ()
    """Of completions."""
    sampling: Sampling
    """Its most tokens are of no account."""
    max_tokens: int | None
    """None: as many as the context has room for."""
    stops: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False
    """Whether a stream ends with a chunk of counts."""
    echo: bool = False
    logprobs: int | None = None
    """How many of the likeliest tokens to name at each position; None: no likelihoods."""


def read_chat(body: bytes) -> CompletionRequest:
    """A request to chat/completions.

    Raises:
        ServingError: it cannot be done as asked.
    """
    fields = _fields(body, _READ_CHAT, _CANNOT_CHAT)
    both = [fields[name] for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if len(set(map(repr, both))) > 1:
        raise _refused("max_tokens", both[1], f"the value of max_completion_tokens, {both[0]!r}; leave one out")
    name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    messages = _value(fields, "messages", list, "a list of messages, not empty", required=True)
    return CompletionRequest(
        messages=tuple(_message(message, number) for number, message in enumerate(messages)),
        max_tokens=_whole(fields, name, 1, None),
        **_shared(fields),
    )


def read_text(body: bytes) -> CompletionRequest:
    """A request to completions.

    Raises:
        ServingError: it cannot be done as asked.
    """
    fields = _fields(body, _READ_TEXT, _CANNOT_TEXT)
    echo = bool(_value(fields, "echo", bool, "true or false"))
    logprobs = _whole(fields, "logprobs", 0, None)
    if logprobs is not None and logprobs > _MOST_LOGPROBS:
        raise _refused("logprobs", logprobs, f"at most {_MOST_LOGPROBS}")
    shared = _shared(fields)
    for name, is_given in (("echo", echo), ("logprobs", logprobs is not None)):
        if is_given and shared["stream"]:
            raise _refused(name, fields[name], "none with stream, since likelihoods come last; ask without stream")
    return CompletionRequest(
        prompts=_prompts(fields),
        max_tokens=_whole(fields, "max_tokens", 0 if echo else 1, _COMPLETION_TOKENS),
        echo=echo,
        logprobs=logprobs,
        **shared,
    )


def _fields(body: bytes, read: tuple[str, ...], cannot: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The fields that count."""
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingError(f"the request is not JSON: {type(error).__name__} {error}; expected an object") from None
    if not isinstance(plain, dict):
        raise ServingError(f"the request is a JSON {type(plain).__name__}; expected an object with model and more")
    for name, value in plain.items():
        if value is None or name in read or name in _LET_PASS:
            continue
        if name not in cannot:
            known = nearest(name, [*read, *cannot])
            raise ServingError(
                f"there is no field {name!r} here, given {value!r}; {known}; leave it out",
                param=name,
                code="unknown_parameter",
            )
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in cannot[name]):
            allowed = " or ".join(json.dumps(one) for one in cannot[name])
            raise ServingError(
                f"{name} is {value!r}, which this server cannot do; expected {allowed}; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    return {name: value for name, value in plain.items() if value is not None and name in read}


def _shared(fields: dict[str, Any]) -> dict[str, Any]:
    stream = bool(_value(fields, "stream", bool, "true or false"))
    options = _value(fields, "stream_options", dict, "an object with include_usage") or {}
    if options and not stream:
        raise _refused("stream_options", options, "it with stream alone; leave it out")
    if unknown := sorted(set(options) - {"include_usage", "include_obfuscation"}):
        raise _refused(f"stream_options.{unknown[0]}", options[unknown[0]], "include_usage and no other option")
    temperature, top_p, seed = (
        _number(fields, "temperature"),
        _number(fields, "top_p"),
        _whole(fields, "seed", 0, None),
    )
    try:
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=_whole(fields, "top_k", 0, 0) or 0, seed=seed)
    except ChatError as error:
        raise ServingError(error, param=str(error).partition(" ")[0], code="invalid_value") from None
    return {
        "model": _value(fields, "model", str, "the name of a model; GET /v1/models lists them", required=True),
        "sampling": sampling,
        "stops": _stops(fields),
        "stream": stream,
        "with_usage": options.get("include_usage") is True,
    }


def _stops(fields: dict[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise _refused("stop", stop, f"a text, or a list of at most {_MOST_STOPS}, none of them empty")
    return tuple(stops)


def _message(message: Any, number: int) -> Message:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise _refused(where, message, 'an object, e.g. {"role": "user", "content": "hello"}')
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise _refused(f"{where}.role", role, "system, developer, user or assistant")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise _refused(f"{where}.{name}", message[name], "none; this server knows no tools and no sounds")
    try:
        text = content_text(content, f"{where}.content")
    except CorpusError:
        raise _refused(f"{where}.content", content, "a text, or a list of parts of type text") from None
    return {"role": _ROLES[role], "content": _whole_text(text, f"{where}.content")}


def _prompts(fields: dict[str, Any]) -> tuple[TextPrompt, ...]:
    prompt = fields.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) and not _are_tokens(prompt) else [prompt]
    if not prompts or len(prompts) > _MOST_PROMPTS or not all(isinstance(p, str) or _are_tokens(p) for p in prompts):
        raise _refused(
            "prompt", prompt, f"a text, a list of token ids, or a list of at most {_MOST_PROMPTS} of such, none empty"
        )
    return tuple(_whole_text(p, "prompt") if isinstance(p, str) else tuple(p) for p in prompts)


def _are_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def _whole_text(text: str, where: str) -> str:
    """JSON can hold half a character, and no tokenizer can."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused(where, text, "whole characters; it has half a surrogate pair")
    return text


def _value(fields: dict[str, Any], name: str, kind: type, expected: str, *, required: bool = False) -> Any:
    """A field of this type; one that is required is not empty."""
    value = fields.get(name)
    if (value is not None and not isinstance(value, kind)) or (required and not value):
        raise _refused(name, value, expected)
    return value


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(name, value, "a number")
    return value


def _whole(fields: dict[str, Any], name: str, least: int, otherwise: int | None) -> int | None:
    value = fields.get(name, otherwise)
    if value is not None and (type(value) is not int or value < least):
        raise _refused(name, value, f"a whole number, {least} or more")
    return value


def _refused(name: str, value: Any, expected: str) -> ServingError:
    return ServingError(f"{name} is {value!r}, expected {expected}", param=name, code="invalid_value")
