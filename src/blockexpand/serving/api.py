"""The application: addresses, who may ask, the queue, the log, and the page.

In: a speaker, where to listen and under which names. Out: a Starlette application of OpenAI's addresses; requests are
answered one after another, in the order in which they came, since there is one model; who leaves loses the turn. It has
the guards of http.py, asks for a key where one is set, keeps nothing of what is said unless a file is named, and sends
nothing anywhere; a line a request goes to standard error. Refused, in OpenAI's shape: other addresses, other methods, a
wrong key; what requests.py and answers.py refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.errors import BlockexpandError, ChatError, ServingError
from blockexpand.progress import say
from blockexpand.records.pack import name_of
from blockexpand.serving.answers import Answerer, AnswerText, Choice, Event, answer, choice_of, names_of, prepare
from blockexpand.serving.conversation import keep
from blockexpand.serving.http import (
    LOOPBACK,
    UnderWay,
    guarded,
    in_thread,
    listen,
    read_json,
    require,
    run,
    stream,
)
from blockexpand.serving.replies import Shape, error_entry, model_entry, sse, usage_of
from blockexpand.serving.requests import CompletionRequest, read_chat, read_text
from blockexpand.serving.speaker import Speaker
from blockexpand.units import format_seconds

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)
_PACKS_HEADER = "x-blockexpand-packs"
_ADDRESSES = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models or GET /health"


@dataclass(frozen=True, kw_only=True)
class Service:
    """How a model is served."""

    host: str = "127.0.0.1"
    """The address to listen on; another than loopback lets others in."""
    port: int = 8000
    """The port to listen on; 0 takes a free one."""
    name: str | None = None
    """What the model is called; its folder's name unless given."""
    routes: bool = False
    """Whether under its own name packs are chosen by what is said; else all of them are on."""
    key: str | None = field(default=None, repr=False)
    """What requests must bear, if anything."""
    log: Path | None = None
    """A file that each question and answer is appended to, as JSON lines; nothing is kept without it."""

    def __post_init__(self) -> None:
        """ServingError for a key that no header can hold; it is not shown."""
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise ServingError("key: expected printable ASCII text, got something else; check the variable it is in")

    @property
    def is_open(self) -> bool:
        """Whether anyone who reaches the machine may use the model."""
        return self.key is None and self.host not in LOOPBACK


def serve(speaker: Speaker, service: Service, listening: Callable[[str, list[str]], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `listening` is called with the address and the names once requests can come.

    Raises:
        ChatError: starlette and uvicorn are not installed, the address cannot be had, or the log not be written.
        ServingError: a name would mean two things.
        PackError: packs are to be chosen, and there are none.
    """
    under_way = UnderWay()
    application = build_service(speaker, service, under_way)
    opened = listen(service.host, service.port)
    host = f"[{service.host}]" if ":" in service.host else service.host
    names = list(names_of(speaker, service.name, routes=service.routes))
    listening(f"http://{host}:{opened.getsockname()[1]}/v1", names)
    run(application, opened, under_way)


def build_service(speaker: Speaker, service: Service, under_way: UnderWay | None = None) -> Starlette:
    """The application; raises as `serve`."""
    require("serve")
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    if service.routes:
        speaker.check_route()
    if service.log is not None:
        keep(service.log, None)
    desk = _Counter(
        speaker=speaker,
        service=service,
        names=names_of(speaker, service.name, routes=service.routes),
        under_way=under_way or UnderWay(),
    )
    routes = [
        Route("/", desk.page),
        Route("/facts", desk.facts),
        Route("/health", desk.health),
        Route("/v1/models", desk.models),
        Route("/v1/models/{name:path}", desk.model),
        Route("/v1/chat/completions", desk.chat, methods=["POST"]),
        Route("/v1/completions", desk.text, methods=["POST"]),
    ]
    handlers = {BlockexpandError: _say_error, HTTPException: _say_http_error, Exception: _say_fault}
    return guarded(routes, service.host, exception_handlers=handlers)


@dataclass(frozen=True, kw_only=True)
class _Counter:
    """Where requests are taken, one after another."""

    speaker: Speaker
    service: Service
    names: dict[str, Choice]
    under_way: UnderWay
    created: int = field(default_factory=lambda: int(time.time()))
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """First come, first served."""

    async def page(self, _request: Request) -> Response:
        """The chat: one file, nothing fetched from elsewhere; base and expanded model side by side."""
        from starlette.responses import Response

        html = (resources.files("blockexpand.serving") / "page.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        return Response(html, media_type="text/html", headers=headers)

    async def facts(self, request: Request) -> Response:
        """What the page shows of the model, and under which names it asks."""
        from starlette.responses import JSONResponse

        self._check_key(request)
        facts = dataclasses.asdict(self.speaker.facts)
        chats = bool(self.speaker.tokenizer.chat_template)
        return JSONResponse(
            {**facts, "models": list(self.names), "chats": chats, "logged": str(self.service.log or "")}
        )

    async def health(self, _request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        self._check_key(request)
        entries = [model_entry(name, self.created) for name in self.names]
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        self._check_key(request)
        name = request.path_params["name"]
        choice_of(self.names, name)
        return JSONResponse(model_entry(name, self.created))

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, read_chat)

    async def text(self, request: Request) -> Response:
        return await self._answer(request, read_text)

    async def _answer(self, request: Request, read: Callable[[bytes], CompletionRequest]) -> Response:
        from starlette.responses import JSONResponse

        self._check_key(request)
        asked = read(await read_json(request))
        shape, events = Shape(asked=asked), self._events(request, asked)
        if not asked.stream:
            async with contextlib.aclosing(events):
                found = [event async for event in events]
            return JSONResponse(shape.whole(found), headers=_headers(found))
        first = await anext(events)  # so that what is refused is refused with its status, and headers say who answers
        headers = {"cache-control": "no-cache", **_headers([first])}
        return stream(_chunks(shape, first, events), "text/event-stream", headers)

    async def _events(self, request: Request, asked: CompletionRequest) -> AsyncGenerator[Event]:
        """What comes of a request, in its turn."""
        from starlette.concurrency import run_in_threadpool

        choice = choice_of(self.names, asked.model)
        prepared = await run_in_threadpool(prepare, self.speaker, asked)
        found: list[Event] = []
        begun = time.monotonic()
        async with self.under_way.one(request) as stop, self.turn:
            async for event in in_thread(answer(self.speaker, asked, choice, prepared, stop), stop):
                found.append(event)
                yield event
            used = usage_of(found)
            say(
                f"{asked.model}: {used['prompt_tokens']:,} tokens read, {used['completion_tokens']:,} written, "
                f"{format_seconds(time.monotonic() - begun)}"
            )
            if self.service.log is not None:
                await run_in_threadpool(_keep, self.service.log, asked, found)

    def _check_key(self, request: Request) -> None:
        if self.service.key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.service.key.encode("ascii"))
        if kind.lower() != "bearer" or not is_right:
            raise ServingError(
                "the request bears no key that is known here; expected a header Authorization: Bearer KEY with the one "
                "this server was started with",
                status=401,
                code="invalid_api_key",
            )


async def _chunks(shape: Shape, first: Event, events: AsyncGenerator[Event]) -> AsyncGenerator[str]:
    """A stream; what goes wrong in it is told in it, and then it has no end that says all is well."""
    found = [first]
    async with contextlib.aclosing(events):
        for chunk in shape.chunks(first):
            yield chunk
        try:
            async for event in events:
                found.append(event)
                for chunk in shape.chunks(event):
                    yield chunk
        except BlockexpandError as error:
            yield sse(error_entry(_as_serving(error)))
            return
    for chunk in shape.last(found):
        yield chunk


def _headers(events: Sequence[Event]) -> dict[str, str]:
    """Which packs answer each prompt, where there are any."""
    packs = [name_of(event.packs) for event in events if isinstance(event, Answerer) and event.packs is not None]
    return {_PACKS_HEADER: ", ".join(packs)} if packs else {}


def _keep(log: Path, asked: CompletionRequest, events: Sequence[Event]) -> None:
    """One line for each answer. ServingError where it cannot be written."""
    shape = Shape(asked=asked).whole(events)
    for number, choice in enumerate(shape["choices"]):
        mine = [event for event in events if event.index == number]
        said = {"messages": list(asked.messages)} if asked.messages else {"prompt": asked.prompts[number]}
        entry: dict[str, Any] = {
            "model": asked.model,
            **said,
            "answer": "".join(e.text for e in mine if isinstance(e, AnswerText)),
        }
        entry |= {"finish_reason": choice["finish_reason"], "usage": usage_of(mine), **choice.get("blockexpand", {})}
        try:
            keep(log, entry)
        except ChatError as error:
            raise ServingError(error, status=500) from None


def _as_serving(error: BlockexpandError) -> ServingError:
    return error if isinstance(error, ServingError) else ServingError(error)


async def _say_error(_request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    assert isinstance(error, BlockexpandError)
    told = _as_serving(error)
    headers = {"www-authenticate": "Bearer"} if told.status == 401 else None
    return JSONResponse(error_entry(told), status_code=told.status, headers=headers)


async def _say_http_error(request: Request, error: Exception) -> Response:
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    told = ServingError(f"there is no {asked} here ({error.detail}); expected {_ADDRESSES}", status=error.status_code)
    return JSONResponse(error_entry(told), status_code=error.status_code, headers=error.headers)


async def _say_fault(_request: Request, error: Exception) -> Response:
    """Our own mistake, or the machine's; its traceback goes to the server's standard error."""
    from starlette.responses import JSONResponse

    told = ServingError(f"the server failed: {type(error).__name__} {error}; its output has more", status=500)
    return JSONResponse(error_entry(told), status_code=500)
