"""One exchange with a server: a request goes out, and what comes back is one of three things.

In: an HTTP client, a path, a body. Out: a `Reply` (JSON that was read whole and in time), a `Fault` that may pass
(no connection, out of time, 408, 409, 425, 429, 5xx, no JSON), or a `Fault` that will not (every other status).
Refused: redirects (a POST would silently become a GET), replies of more than `MAX_REPLY_BYTES`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from httpx2 import Client, Response

MAX_REPLY_BYTES = 32_000_000
"""Of one reply; the longest answers of today's models are below a megabyte."""
_PASSING = frozenset({408, 409, 425, 429})
"""Besides 5xx. RFC 9110 and RFC 6585: request timeout, conflict, too early, too many requests."""
_LONGEST_WAIT_SECONDS = 60.0
"""That a server's Retry-After is followed for."""
_SHOWN_CHARACTERS = 300
"""Of what a server says about an error."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """JSON that came back."""

    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What went wrong."""

    message: str
    may_pass: bool
    """Whether trying again can help."""
    status: int | None = None
    """The HTTP status, where there was one."""
    connected: bool = True
    """Whether anybody was there at all."""
    wait_seconds: float | None = None
    """How long the server asked to wait."""


def exchange(
    client: Client, method: str, path: str, body: dict[str, Any] | None, timeout_seconds: float
) -> Reply | Fault:
    """Send a request and read the reply whole, within `timeout_seconds` altogether."""
    import httpx2

    deadline = time.monotonic() + timeout_seconds
    try:
        with client.stream(method, path, json=body, timeout=timeout_seconds) as response:
            content = _read(response, deadline)
    except httpx2.TimeoutException:
        return Fault(message=f"no answer within {timeout_seconds:g} s", may_pass=True)
    except httpx2.ConnectError as error:
        return Fault(message=f"no connection: {_words(error)}", may_pass=True, connected=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Fault(message=f"the connection broke: {_words(error)}", may_pass=True)
    if isinstance(content, Fault):
        return content
    if not response.is_success:
        return _refusal(response, content)
    return _parsed(content)


def _read(response: Response, deadline: float) -> bytes | Fault:
    """The whole body: a server that sends a byte now and then would outlast the client's own time-out."""
    parts, size = [], 0
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            return Fault(message=f"the reply is longer than {MAX_REPLY_BYTES:,} bytes", may_pass=False)
        if time.monotonic() > deadline:
            return Fault(message=f"the reply was not complete in time ({size:,} bytes came)", may_pass=True)
    return b"".join(parts)


def _refusal(response: Response, content: bytes) -> Fault:
    status = response.status_code
    said = _said(content)
    return Fault(
        message=f"HTTP {status}" + (f": {said}" if said else ""),
        may_pass=status in _PASSING or status >= 500,
        status=status,
        wait_seconds=_wait(response.headers.get("retry-after", "")),
    )


def _said(content: bytes) -> str:
    """What the server wrote about the error, in the usual shape or any other."""
    text = content.decode("utf-8", "replace").strip()
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict):
        inner = data.get("error", data.get("detail", data.get("message", data)))
        inner = inner.get("message", inner) if isinstance(inner, dict) else inner
        text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _wait(header: str) -> float | None:
    """Seconds of a Retry-After; dates, which few servers send, are not followed."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return min(seconds, _LONGEST_WAIT_SECONDS) if seconds >= 0 else None


def _parsed(content: bytes) -> Reply | Fault:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        shown = content[:60].decode("utf-8", "replace")
        return Fault(message=f"the reply is not JSON: {shown!r}", may_pass=True)
    if not isinstance(data, dict):
        return Fault(message=f"the reply is a JSON {type(data).__name__}; expected an object", may_pass=True)
    return Reply(data=data)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
