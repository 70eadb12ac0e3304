"""The chat as a page on this machine: the base's answer beside the expanded model's.

In: a speaker, where to listen. Out: a Starlette application of three addresses: the page (one file, nothing fetched),
the facts, and an answer as a stream of JSON lines. It listens on loopback unless told otherwise, keeps nothing of what
is said unless a file is named, and sends nothing anywhere. Refuses requests for another host's name (a web site that
points its name here) and of any type but JSON (a form on another site).

Starlette and uvicorn rather than Gradio: the newest Gradio that goes with our pins (pillow 13, pydantic 2.14) is 3.18,
of 2023, and a page of one file needs none of it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.chat.conversation import describe_route
from blockexpand.chat.sampling import Sampling
from blockexpand.chat.speaking import Message, Speaker
from blockexpand.errors import BlockexpandError, ChatError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from blockexpand.packs.routing import Route

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_MOST_BYTES = 4_000_000
"""Of a request: a long conversation, and no more."""
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)
_SAMPLED = ("max_tokens", "temperature", "top_p", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Where the page is, and what is kept of it."""

    host: str = "127.0.0.1"
    """The address to listen on; another than loopback lets others in, without a password."""

    port: int = 7860
    """The port to listen on."""

    log: Path | None = None
    """A file that each question and answer is appended to, as JSON lines; nothing is kept without it."""

    system: str = ""
    """What the model is told first, until somebody changes it on the page."""

    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    """The settings the page begins with."""

    routes: bool = False
    """Whether the page begins with packs chosen by what is said."""


def serve_page(speaker: Speaker, page: Page) -> None:
    """Serve until interrupted.

    Raises:
        ChatError: starlette and uvicorn are not installed, or the address cannot be had.
    """
    import socket

    application = build_page(speaker, page)
    import uvicorn

    try:
        listening = socket.create_server((page.host, page.port), family=_family(page.host))
    except (OSError, OverflowError) as error:
        raise ChatError(
            f"{page.host}:{page.port} cannot be listened on: {error}; choose another --port or --host"
        ) from None
    with listening:
        config = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])


def _family(host: str) -> Any:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET


def build_page(speaker: Speaker, page: Page) -> Starlette:
    """The application. ChatError where starlette or uvicorn is not installed."""
    try:
        import uvicorn
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ImportError as error:
        raise ChatError(f"{error.name} is not installed, which --web needs; pip install 'blockexpand[chat]'") from None
    del uvicorn  # the server's; asked for here so that it is missed before a model answers
    html = (resources.files("blockexpand.chat") / "page.html").read_text(encoding="utf-8")
    log_lock = threading.Lock()

    async def show(_request: Request) -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        return Response(html, media_type="text/html", headers=headers)

    def facts(_request: Request) -> Response:  # in a thread: it waits for the answer under way
        return JSONResponse(_facts(speaker, page))

    async def answer(request: Request) -> Response:
        try:
            asked = _read_question(request.headers.get("content-type", ""), await request.body(), page.sampling)
        except ChatError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        stop = threading.Event()
        return StreamingResponse(
            _stream(_lines(speaker, asked, stop, (page.log, log_lock)), stop, request),
            media_type="application/x-ndjson",
        )

    routes = [Route("/", show), Route("/facts", facts), Route("/answer", answer, methods=["POST"])]
    hosts = list(_LOOPBACK) if page.host in _LOOPBACK else ["*"]
    return Starlette(
        routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    )


def _facts(speaker: Speaker, page: Page) -> dict[str, Any]:
    return {
        **dataclasses.asdict(speaker.facts),
        "packs": {name: name in speaker.packs_on for name in speaker.packs},
        "routes": page.routes,
        "plain": speaker.plain,
        "system": page.system,
        "sampling": dataclasses.asdict(page.sampling),
        "logged": str(page.log) if page.log else None,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Question:
    messages: list[Message]
    sampling: Sampling
    as_base: bool
    packs: list[str] | None
    routes: bool


def _read_question(kind: str, body: bytes, sampling: Sampling) -> _Question:
    """What the page asks. ChatError for what a page of ours would not send."""
    if kind.partition(";")[0].strip() != "application/json":
        raise ChatError(f"the request is of type {kind!r}, expected application/json")
    if len(body) > _MOST_BYTES:
        raise ChatError(
            f"the request has {len(body):,} bytes, expected at most {_MOST_BYTES:,}; start a new conversation"
        )
    try:
        asked = json.loads(body)
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in asked["messages"]]
        for name in _SAMPLED:
            sampling = sampling.changed(name, asked["sampling"].get(name, vars(sampling)[name]))
        packs = [str(name) for name in asked["packs"]] if asked.get("packs") is not None else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ChatError(f"the request cannot be understood: {type(error).__name__} {error}; reload the page") from None
    if not messages or any(m["role"] not in ("system", "user", "assistant") for m in messages):
        raise ChatError("the request has no messages, or of other roles than system, user, assistant; reload the page")
    flags = {name: asked.get(name) is True for name in ("as_base", "routes")}
    return _Question(messages=messages, sampling=sampling, packs=packs, **flags)


def _lines(
    speaker: Speaker, asked: _Question, stop: threading.Event, log: tuple[Path | None, threading.Lock]
) -> Iterator[dict[str, Any]]:
    """What was chosen where packs are, pieces as they come, then the end, or what went wrong."""
    pieces: list[str] = []
    heard: list[Route] = []
    more: dict[str, Any] = {"packs": asked.packs, "routed": heard.append if asked.routes else None, "stop": stop}
    try:
        for piece in speaker.answer(asked.messages, asked.sampling, as_base=asked.as_base, **more):
            if heard and not pieces:
                yield {"route": describe_route(heard[0])}
            pieces.append(piece)
            yield {"text": piece}
        yield {"end": True}
    except BlockexpandError as error:
        yield {"error": str(error)}
    path, lock = log
    if path is not None:
        entry: dict[str, Any] = {"messages": asked.messages, "as_base": asked.as_base, "answer": "".join(pieces)}
        entry |= {"packs": list(heard[0].names)} if heard else {}
        with lock, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


async def _stream(lines: Iterator[dict[str, Any]], stop: threading.Event, request: Request) -> AsyncIterator[str]:
    """The lines, made in another thread; when whoever asked leaves, the model stops."""
    from starlette.concurrency import iterate_in_threadpool

    try:
        async for line in iterate_in_threadpool(lines):
            if await request.is_disconnected():
                return
            yield json.dumps(line) + "\n"
    finally:
        stop.set()
