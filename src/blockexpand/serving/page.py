"""The chat as a page on this machine: the base's answer beside the expanded model's.

In: a speaker, where to listen. Out: a Starlette application of three addresses: the page (one file, nothing fetched),
the facts, and an answer as a stream of JSON lines. It listens on loopback unless told otherwise, keeps nothing of what
is said unless a file is named, and sends nothing anywhere. Refuses requests for another host's name (a web site that
points its name here) and of any type but JSON (a form on another site); listening.py has these guards.

Starlette and uvicorn rather than Gradio: the newest Gradio that goes with our pins (pillow 13, pydantic 2.14) is 3.18,
of 2023, and a page of one file needs none of it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import AsyncGenerator, Generator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.errors import BlockexpandError, ChatError
from blockexpand.serving.conversation import describe_route, keep
from blockexpand.serving.http import UnderWay, guarded, in_thread, listen, read_json, require, run, stream
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.speaker import Message, Speaker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from blockexpand.packs.route import Route

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
    under_way = UnderWay()
    application = build_page(speaker, page, under_way)
    run(application, listen(page.host, page.port), under_way)


def build_page(speaker: Speaker, page: Page, under_way: UnderWay | None = None) -> Starlette:
    """The application. ChatError where starlette or uvicorn is not installed."""
    require("--web")
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    html = (resources.files("blockexpand.serving") / "page.html").read_text(encoding="utf-8")
    log_lock, answering = threading.Lock(), under_way or UnderWay()

    async def show(_request: Request) -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        return Response(html, media_type="text/html", headers=headers)

    def facts(_request: Request) -> Response:  # in a thread: it waits for the answer under way
        return JSONResponse(_facts(speaker, page))

    async def answer(request: Request) -> Response:
        try:
            asked = _read_question(await read_json(request), page.sampling)
        except ChatError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

        async def lines() -> AsyncGenerator[str]:
            async with answering.one(request) as stop:
                async for line in in_thread(_lines(speaker, asked, stop, (page.log, log_lock)), stop):
                    yield json.dumps(line) + "\n"

        return stream(lines(), "application/x-ndjson")

    return guarded([Route("/", show), Route("/facts", facts), Route("/answer", answer, methods=["POST"])], page.host)


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


def _read_question(body: bytes, sampling: Sampling) -> _Question:
    """What the page asks. ChatError for what a page of ours would not send."""
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
) -> Generator[dict[str, Any]]:
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
        with lock:
            keep(path, entry)
