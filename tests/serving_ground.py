"""Tiny models with a template, packs of their base, a served model in this process, and plain HTTP to ask it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file, save_file

import blockexpand
from blockexpand.serving import Sampling, Service, Speaker, build_service
from blockexpand.serving.http import UnderWay, listen
from blockexpand.serving.speaker import Who
from helpers import edit_json, make_base
from packs_ground import make_pack, make_trained

SAID = ("ran red the old to sat", "over mat over and house mat", "dog on cat and over sat")
"""What the packs a and b and the base find likeliest, as it happens, where no evidence is asked for."""


def write_expanded(folder: Path) -> Path:
    """`folder`/base and `folder`/run/model: an expanded model whose new blocks do something, with a run's record."""
    base = make_base(folder / "base", "llama", num_hidden_layers=2, seed=4)
    # Words only, so that every answer can be seen.
    edit_json(
        base / "generation_config.json", lambda entries: entries.update(suppress_tokens=[*range(4), *range(22, 96)])
    )
    model = folder / "run" / "model"
    blockexpand.expand(base, model, blockexpand.plan(base, blocks=1))
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.count_nonzero() == 0:
            tensors[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    record = {"best": {"step": 4, "domain": 1.25, "general": 3.6, "rise": 0.0075}, "base": {"domain": 2.0, "rise": 0.0}}
    (folder / "run" / "blockexpand.json").write_text(json.dumps(record))
    return model


def write_packs(base: Path, folder: Path) -> list[Path]:
    """Two packs of the base, a and b, that SAID tells apart."""
    made = {name: make_trained(base, folder / name, seed, by=0.3, after=(1,)) for seed, name in enumerate(("a", "b"))}
    return [make_pack(path, folder / f"{name}.pack", name).folder for name, path in made.items()]


GREEDY = Sampling(temperature=0, max_tokens=12)


def answered(
    speaker: Speaker, messages: Sequence[dict[str, str]], sampling: Sampling = GREEDY, stop: Any = None, **who: Any
) -> str:
    """What a speaker says to some messages; `who` as Who takes it."""
    prompt, stream = speaker.begin(messages, sampling, stop)
    return "".join(speaker.write(prompt, sampling, Who(**who), stream))


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
