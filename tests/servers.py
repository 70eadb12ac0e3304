"""A real HTTP server in a thread that plays an OpenAI-compatible one, by a script."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Bytes to send back as they are."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None
    """The length the header claims; the connection is closed after the content whatever it says."""
    drip_seconds: float = 0.0
    """Between two bytes."""


def completion(text: str, **extra: Any) -> Raw:
    """A chat completion that says `text`."""
    data = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    return Raw(json.dumps(data | extra).encode())


def failure(status: int, message: str = "trouble", **headers: str) -> Raw:
    """An error in OpenAI's shape."""
    return Raw(json.dumps({"error": {"message": message}}).encode(), status, headers)


@dataclass
class Server:
    """What the test sees of it."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the chat requests, in order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of all requests, their names in lower case."""


Reply = Callable[[dict[str, Any]], Raw]


@contextlib.contextmanager
def serving(reply: Reply | list[Raw], models: Raw | None = None) -> Generator[Server]:
    """A server on a free port: `reply` answers each chat request, or gives the answers one after another."""
    lock = threading.Lock()
    listing = models or Raw(b'{"object": "list", "data": [{"id": "m"}]}')

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._note()
            self._send(listing if self.path == "/v1/models" else failure(404, f"no {self.path}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._note()
            with lock:
                server.asked.append(body)
                number = len(server.asked) - 1
            if self.path != "/v1/chat/completions":
                self._send(failure(404, f"no {self.path}"))
            else:
                self._send(reply[number] if isinstance(reply, list) else reply(body))

        def _note(self) -> None:
            with lock:
                server.headers.append({name.lower(): value for name, value in self.headers.items()})

        def _send(self, raw: Raw) -> None:
            self.send_response(raw.status)
            length = len(raw.content) if raw.promised is None else raw.promised
            for name, value in {"Content-Length": str(length), **raw.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                if raw.drip_seconds:
                    for byte in raw.content:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(raw.drip_seconds)
                else:
                    self.wfile.write(raw.content)
            self.close_connection = length != len(raw.content)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = Server(url=f"http://127.0.0.1:{listener.server_address[1]}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def closed_port_url() -> str:
    """An address where nobody listens."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = listener.server_address[1]
    listener.server_close()
    return f"http://127.0.0.1:{port}"
