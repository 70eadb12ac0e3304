"""A served model in this process, on a port of its own, and plain HTTP to ask it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Generator
from typing import Any

import uvicorn

from blockexpand.serving import Service, Speaker, build_service
from blockexpand.serving.http import UnderWay, listen


@dataclasses.dataclass
class Said:
    """What came back."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def data(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.data) == {"error"}
        assert set(self.data["error"]) == {"message", "type", "param", "code"}
        return self.data["error"]

    @property
    def events(self) -> list[Any]:
        """Of a stream, without its end."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = self.text.split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        if lines[-1] == "data: [DONE]":
            lines.pop()
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@dataclasses.dataclass
class Served:
    """A server under test."""

    port: int
    under_way: UnderWay

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, path: str, body: Any = None, **headers: str) -> Said:
        """GET, or POST with a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        method = "GET" if body is None else "POST"
        kind = {} if body is None else {"Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, path, data, kind | headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Said(response.status, response.read().decode(), found)

    def chat(self, text: str, **fields: Any) -> Said:
        """One turn, greedy, unless told otherwise."""
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
        return self.ask("/v1/chat/completions", asked | fields)

    def complete(self, prompt: Any, **fields: Any) -> Said:
        """A completion, greedy, unless told otherwise."""
        return self.ask("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 8} | fields)


@contextlib.contextmanager
def served(speaker: Speaker, **settings: Any) -> Generator[Served]:
    """The server, ended with the context."""
    under_way = UnderWay()
    service = Service(port=0, **settings)
    listening = listen("127.0.0.1", service.port)  # the guards are those of service.host
    application = build_service(speaker, service, under_way)
    server = uvicorn.Server(uvicorn.Config(application, log_level="critical", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Served(listening.getsockname()[1], under_way)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive()
