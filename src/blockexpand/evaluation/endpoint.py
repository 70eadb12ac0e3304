"""Chat with a model behind an OpenAI-compatible address, by the `openai` client.

In: an address, a model's name, messages. Out: an `Answer`, always. The client tries again what may pass (no connection,
time-outs, 408, 409, 429, 5xx, with waits that double and follow Retry-After); what does not pass stands in
`Answer.error`, never in its text, so a server's trouble cannot be taken for a wrong answer. Refused, with an
`EndpointError`: an address that is none or carries a secret, a missing client, and (by `check`) a server that is not
there or does not know the key. Keys are never shown, written or sent anywhere but to the address.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blockexpand.errors import EndpointError

if TYPE_CHECKING:
    from openai import OpenAI

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_AT_ONCE = 8
"""Requests under way at a time: enough for a server to batch, few enough for public rate limits."""
_MOST_STOPS = 4  # OpenAI's chat completions take no more; the text is cut at the others here
_SHOWN_CHARACTERS = 300
"""Of what a server says about an error."""


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
    """In which a try has to bring something."""
    retries: int = 4
    """Tries after the first."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        _expect(bool(self.model), "model", self.model, "the name of a model on the server")
        _expect(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "more than 0")
        _expect(0 <= self.retries <= 20, "retries", self.retries, "0 to 20")
        # An HTTP header takes neither line breaks nor letters beyond ASCII; the value must not be shown.
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise EndpointError("key: expected printable ASCII text, got something else; check the variable it is in")

    def ask(self, request: Request) -> Answer:
        """Ask, and wait for the whole answer. Never raises for what a server does."""
        import openai

        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{key: _sendable(text) for key, text in message.items()} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.stop:
            asked["stop"] = list(request.stop[:_MOST_STOPS])
        start = time.monotonic()
        client = self._client
        try:
            said: Any = client.chat.completions.create(**asked, extra_headers=self._headers)
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            return Answer(text="", error=self._words(error), seconds=time.monotonic() - start)
        seconds = time.monotonic() - start
        try:  # the client does not check replies against its own types
            text = _sendable(said.choices[0].message.content)
            used = [_count(said.usage, name) for name in ("prompt_tokens", "completion_tokens")]
        except (AttributeError, IndexError, TypeError, KeyError, ValueError) as error:
            why = f"the reply is no chat completion with text ({error}): {str(said)[:120]!r}"
            return Answer(text="", error=why, seconds=seconds)
        return Answer(
            text=cut_at(text, request.stop), prompt_tokens=used[0], completion_tokens=used[1], seconds=seconds
        )

    def check(self) -> None:
        """See, once, whether a server is there and takes the key; it need not list its models.

        Raises:
            EndpointError: nobody answers at the address, or the key is refused.
        """
        import openai

        try:
            self._client.with_options(max_retries=0).models.list(extra_headers=self._headers)
        except openai.APIConnectionError as error:
            raise EndpointError(
                f"cannot reach {self.url}: {self._words(error)}; expected a server that speaks OpenAI's chat "
                "completions; start it, or check the address"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self.url} refuses the key ({self._words(error)}); expected one that it knows; check the environment "
                "variable it is read from"
            ) from None
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return

    def close(self) -> None:
        """Close the connections that are kept; the next request opens new ones."""
        client = vars(self).pop("_client", None)
        if client is not None:
            client.close()

    @functools.cached_property
    def _client(self) -> OpenAI:
        import openai

        parts = urlsplit(self.url)
        base = self.url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        client = openai.OpenAI(
            base_url=base,
            api_key=self.key or "none",
            timeout=self.timeout_seconds,
            max_retries=self.retries,
            # A proxy of the environment cannot reach this machine's own servers.
            http_client=openai.DefaultHttpxClient(
                trust_env=parts.hostname not in _LOOPBACK, follow_redirects=False, timeout=self.timeout_seconds
            ),
        )
        client.organization = client.project = None  # nor what else it finds there
        return client

    @property
    def _headers(self) -> dict[str, Any]:
        """Without a key of ours none is sent, whatever the environment holds."""
        import openai

        return {} if self.key else {"Authorization": openai.Omit()}

    def _words(self, error: BaseException) -> str:
        """What went wrong, in a line; some servers repeat the key they refuse."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            said = f"no answer within {self.timeout_seconds:g} s"
        elif isinstance(error, openai.APIConnectionError):
            said = f"no connection: {error.__cause__ or error}"
        elif isinstance(error, openai.APIStatusError):
            body = error.body
            inner = body.get("message", body.get("detail", body)) if isinstance(body, dict) else body
            said = f"HTTP {error.status_code}: {inner or error.response.text}"
        else:
            said = f"the reply cannot be read: {error}"
        said = " ".join(said.split())
        return (said.replace(self.key, "(the key)") if self.key else said)[:_SHOWN_CHARACTERS]


def require_client() -> None:
    """Refuse early where the client is missing.

    Raises:
        EndpointError: it is not installed; the message has the line that installs it.
    """
    try:
        import openai  # noqa: F401
    except ImportError:
        raise EndpointError(
            "a model behind an address needs the openai client, which is not installed; expected the extra "
            "'evaluation'; run pip install -c constraints.txt 'blockexpand[evaluation]'"
        ) from None


def ask_all(endpoint: Endpoint, requests: Sequence[Request], at_once: int = _AT_ONCE) -> Iterator[Answer]:
    """The answers in the order of the requests, several asked at a time."""
    with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
        yield from pool.map(endpoint.ask, requests)


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


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; some servers ignore them."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else text


def _sendable(text: str) -> str:
    """Half a character, which JSON can hold and no file can, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(usage: Any, name: str) -> int:
    value = dict(usage or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
