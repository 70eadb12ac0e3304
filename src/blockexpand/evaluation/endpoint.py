"""Chat with a model behind an OpenAI-compatible address.

In: an address, a model's name, messages. Out: an `Answer`, always: what may pass (no connection, out of time, 429, 5xx,
a reply that is no chat completion) is tried again with waits that double, and what does not pass stands in
`Answer.error`, never in its text; so a server's trouble cannot be taken for a wrong answer. Refused, with an
`EndpointError`: an address that is none or carries a secret, and (by `check`) a server that is not there or does not
know the key. Keys are never shown, written or sent anywhere but to the address.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blockexpand.errors import EndpointError
from blockexpand.evaluation.exchange import Fault, Reply, exchange

if TYPE_CHECKING:
    from httpx2 import Client

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_AT_ONCE = 8
"""Requests under way at a time: enough for a server to batch, few enough for public rate limits."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one request."""

    text: str
    """What the model said; empty where there is an error."""
    error: str | None = None
    """Why there is no answer, after the last try."""
    prompt_tokens: int = 0
    """As the server counts; 0 where it does not."""
    completion_tokens: int = 0
    """As the server counts; 0 where it does not."""
    seconds: float = 0.0
    """Wall time of all tries and the waits between them."""
    num_tries: int = 1
    too_long: bool = False
    """Whether the conversation did not fit the model's context; only models in this process say so."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model."""

    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address."""

    url: str
    """The server's address, e.g. http://localhost:8000/v1; where it has no path, /v1 is meant."""
    model: str
    """The model's name there."""
    _: KW_ONLY
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; never shown and never written."""
    timeout_seconds: float = 60.0
    """Of one try, from sending to the last byte."""
    retries: int = 4
    """Tries after the first."""
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)
    """How to wait between two tries."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        _expect(bool(self.model), "model", self.model, "the name of a model on the server")
        _expect(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "more than 0")
        _expect(0 <= self.retries <= 20, "retries", self.retries, "0 to 20")
        # An HTTP header takes neither line breaks nor letters beyond ASCII; the value must not be shown.
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise EndpointError("key: expected printable ASCII text, got something else; check the variable it is in")

    def chat(
        self, messages: Sequence[Message], max_tokens: int, temperature: float = 0.0, stop: tuple[str, ...] = ()
    ) -> Answer:
        """Ask, and wait for the whole answer. Never raises for what a server does."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{key: _sendable(text) for key, text in message.items()} for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if stop:
            body["stop"] = list(stop)
        start = time.monotonic()
        for tries in range(1, self.retries + 2):
            found = _completion(exchange(self._client, "POST", "chat/completions", body, self.timeout_seconds))
            if isinstance(found, Reply):
                return _answer(found.data, stop, time.monotonic() - start, tries)
            if not found.may_pass or tries > self.retries:
                break
            self.sleep(_wait_seconds(tries, found))
        error = self._without_key(f"{found.message} ({tries} {'try' if tries == 1 else 'tries'})")
        return Answer(text="", error=error, seconds=time.monotonic() - start, num_tries=tries)

    def check(self) -> None:
        """See, once, whether a server is there and takes the key; it need not list its models.

        Raises:
            EndpointError: nobody answers at the address, or the key is refused.
        """
        found = exchange(self._client, "GET", "models", None, self.timeout_seconds)
        if isinstance(found, Reply):
            return
        said = self._without_key(found.message)
        if not found.connected:
            raise EndpointError(
                f"cannot reach {self.url}: {said}; expected a server that speaks OpenAI's chat completions; start it, "
                "or check the address"
            )
        if found.status in (401, 403):
            raise EndpointError(
                f"{self.url} refuses the key ({said}); expected one that it knows; check the environment variable it "
                "is read from"
            )

    def close(self) -> None:
        """Close the connections that are kept; the next request opens new ones."""
        client = vars(self).pop("_client", None)
        if client is not None:
            client.close()

    @functools.cached_property
    def _client(self) -> Client:
        import httpx2  # 0.1 s, and only those who ask need it

        parts = urlsplit(self.url)
        base = self.url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # A proxy of the environment cannot reach this machine's own servers.
        return httpx2.Client(base_url=base + "/", headers=headers, trust_env=parts.hostname not in _LOOPBACK)

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they refuse."""
        return text.replace(self.key, "(the key)") if self.key else text


def ask_all(endpoint: Endpoint, requests: Sequence[Request], at_once: int = _AT_ONCE) -> Iterator[Answer]:
    """The answers in the order of the requests, several asked at a time."""

    def ask(request: Request) -> Answer:
        return endpoint.chat(request.messages, request.max_tokens, request.temperature, request.stop)

    with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
        yield from pool.map(ask, requests)


def _expect(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise EndpointError(f"{name}: expected {expected}, got {value!r}")


def _check_url(url: str) -> None:
    example = "an address such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        has_secret = parts.username is not None or parts.password is not None or bool(parts.query)
    except ValueError as error:
        raise EndpointError(f"{url!r} is no address ({error}); expected {example}") from None
    if has_secret:
        raise EndpointError(
            f"the address of {parts.hostname} carries a name, a password or a query; expected {example}; give the key "
            "in an environment variable, since addresses are written into records"
        )
    if not valid:
        raise EndpointError(f"{url!r} is no address of a server; expected {example}")


def _completion(found: Reply | Fault) -> Reply | Fault:
    """The reply, or the fault that it is no chat completion."""
    if isinstance(found, Fault):
        return found
    choices = found.data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        shown = repr(found.data)[:120]
        return Fault(message=f"the reply is no chat completion with text: {shown}", may_pass=True)
    return found


def _answer(data: dict[str, Any], stop: Sequence[str], seconds: float, tries: int) -> Answer:
    text = data["choices"][0]["message"]["content"]
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=cut_at(_sendable(text), stop),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        seconds=seconds,
        num_tries=tries,
    )


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; some servers ignore them."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else text


def _sendable(text: str) -> str:
    """Half a character, which JSON can hold and no file can, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _wait_seconds(tries: int, fault: Fault) -> float:
    """Doubled each time, a little apart from what others wait, and never less than the server asked for."""
    doubled = min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS) * random.uniform(1.0, 1.25)
    return max(doubled, fault.wait_seconds or 0.0)
