"""Episodes against a real server: `transformers serve` on a tiny chat model that is made here.

The server and this process load the same weights in float32 and choose greedily, so both must say the same words.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

from blockexpand.agents import Cast, EndpointSpeaker, LoadedSpeaker, load_speaker, make_puzzles, run_agent
from blockexpand.errors import EndpointError
from blockexpand.evaluation.endpoint import Endpoint, Request
from blockexpand.records.agents import AgentSettings, Manner, Opposite, read_agent
from helpers import edit_config
from lm_helpers import make_lm
from players import PlainTools

MISSING = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}"),
]

START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edit_config(make_lm(tmp_path_factory.mktemp("served") / "m"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def served(model: Path) -> Generator[Endpoint]:
    """The server, ended with the module."""
    port = free_port()
    tool = Path(sys.executable).parent / "transformers"
    options = ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (model.parent / "log.txt").open("w+")
    child = subprocess.Popen([tool, "serve", str(model), *options], stdout=log, stderr=log, env=environment)
    endpoint = Endpoint(f"http://127.0.0.1:{port}", str(model), timeout_seconds=60)
    deadline = time.monotonic() + START_SECONDS
    try:
        while not _is_up(endpoint):
            assert child.poll() is None, Path(log.name).read_text()[-2000:]
            assert time.monotonic() < deadline, Path(log.name).read_text()[-2000:]
            time.sleep(0.2)
        yield endpoint
    finally:
        endpoint.close()
        child.terminate()
        child.wait(30)
        log.close()


def _is_up(endpoint: Endpoint) -> bool:
    try:
        endpoint.check()
    except EndpointError:
        return False
    return True


def test_a_served_model_says_what_the_loaded_one_says(served: Endpoint, model: Path, tmp_path: Path) -> None:
    loaded = load_speaker(model)
    requests = [
        Request(messages=[{"role": "user", "content": text}], max_tokens=10) for text in ("the cat", "a dog sees")
    ]
    theirs, ours = EndpointSpeaker(endpoint=served).ask(requests), loaded.ask(requests)
    assert [one.error for one in theirs] == [None, None]
    assert [one.text for one in theirs] == [one.text for one in ours]
    assert [one.prompt_tokens for one in theirs] == [one.prompt_tokens for one in ours]
    runs = [
        _run(speaker, tmp_path / name)
        for name, speaker in (("served", EndpointSpeaker(endpoint=served)), ("loaded", loaded))
    ]
    assert runs[0] == runs[1]


def _run(speaker: EndpointSpeaker | LoadedSpeaker, out: Path) -> list[tuple[str, int, list[str]]]:
    settings = AgentSettings(speaker=Opposite(model="m"), budgets=(1, 2), manner=Manner(example=False), max_tokens=8)
    run_agent(Cast(speaker=speaker, tools=PlainTools()), make_puzzles(3), settings, out)
    return [(e.id, e.budget, [turn.output for turn in e.turns]) for e in read_agent(out).episodes]


def test_a_model_that_the_server_does_not_have_is_an_error_of_the_answer(served: Endpoint) -> None:
    other = Endpoint(served.url, "/nowhere/at/all", retries=0)
    answer = other.ask(Request(messages=[{"role": "user", "content": "hi"}], max_tokens=4))
    other.close()
    assert answer.text == ""
    assert answer.error is not None
    assert "HTTP 4" in answer.error or "HTTP 5" in answer.error
