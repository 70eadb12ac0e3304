"""What every server of ours does: listen on this machine, let in whom it should, stop for those who leave, and end.

In: the addresses of a Starlette application and the address to listen on. Out: the application behind its guards, and
served until Ctrl-C or SIGTERM, which stop the answers under way and let the program go on. Refused: requests for
another host's name where it listens on loopback (a web site that points its name here), of any type but JSON (a form
on another site), and of more bytes than a long conversation has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from blockexpand.errors import ChatError

if TYPE_CHECKING:
    import socket

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_MOST_BYTES = 4_000_000
"""Of a request: a long conversation, and no more."""

Item = TypeVar("Item")


def require(what: str) -> None:
    """See that the extra is installed, before a model is loaded or answers.

    Raises:
        ChatError: starlette or uvicorn is not installed.
    """
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ChatError(f"{error.name} is not installed, which {what} needs; pip install 'blockexpand[chat]'") from None
    del starlette, uvicorn


def guarded(routes: Sequence[BaseRoute], host: str, **more: Any) -> Starlette:
    """An application that answers to this machine's own names alone, where it listens on loopback."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = list(LOOPBACK) if host in LOOPBACK else ["*"]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return Starlette(routes=list(routes), middleware=[guard], **more)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ChatError: the address cannot be had.
    """
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ChatError(f"{host}:{port} cannot be listened on: {error}; choose another --port or --host") from None


def run(application: Starlette, listening: socket.socket, under_way: UnderWay) -> None:
    """Serve until Ctrl-C or SIGTERM; answers under way end with the token that is being made."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Not remembered, as uvicorn would to raise it again: to be ended is how a server's work is done."""
            del sig, frame
            self.force_exit = self.should_exit
            self.should_exit = True
            under_way.end()

    config = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False, lifespan="off")
    with listening:
        Server(config).run(sockets=[listening])


class UnderWay:
    """The requests that are being answered, so that the end of the server can end them."""

    def __init__(self) -> None:
        """None yet."""
        self.is_ending = False
        self._stops: set[threading.Event] = set()

    @contextlib.asynccontextmanager
    async def one(self, request: Request) -> AsyncGenerator[threading.Event]:
        """An event for one request whose body was read; set when whoever asked leaves, or the server ends."""
        stop = threading.Event()
        if self.is_ending:
            stop.set()
        self._stops.add(stop)
        watching = asyncio.create_task(_left(request, stop))
        try:
            yield stop
        finally:
            stop.set()
            watching.cancel()
            self._stops.discard(stop)

    def end(self) -> None:
        """Stop all of them, and those that come."""
        self.is_ending = True
        for stop in tuple(self._stops):
            stop.set()


async def _left(request: Request, stop: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stop.set()


async def read_json(request: Request) -> bytes:
    """The bytes of a request that says it is JSON.

    Raises:
        ChatError: it is of another type, or too long.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ChatError(f"the request is of type {kind!r}, expected application/json")
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        body += part if size <= _MOST_BYTES else b""
    if size > _MOST_BYTES:
        raise ChatError(f"the request has {size:,} bytes, expected at most {_MOST_BYTES:,}; start a new conversation")
    return bytes(body)


async def in_thread(items: Generator[Item], stop: threading.Event) -> AsyncGenerator[Item]:
    """What a generator gives, made in another thread. Leaving it sets `stop`, and waits for the generator to end."""
    import anyio
    from starlette.concurrency import iterate_in_threadpool

    try:
        async for item in iterate_in_threadpool(items):
            yield item
    finally:
        stop.set()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(items.close)


def stream(chunks: AsyncGenerator[str], media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that gives chunks as they come; whether it is read to its end or not, their generator is closed."""
    import anyio
    from starlette.responses import StreamingResponse

    class Stream(StreamingResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                with anyio.CancelScope(shield=True):
                    await chunks.aclose()

    return Stream(chunks, media_type=media_type, headers=headers)
