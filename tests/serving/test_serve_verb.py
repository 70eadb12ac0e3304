"""`serve` from the command line: a process that is asked and ended, and what it says."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockexpand import serving
from blockexpand.cli.main import run
from blockexpand.evaluation.endpoint import Endpoint, Request
from blockexpand.serving import Service, Speaker, names_of
from helpers import edit_config
from lm_helpers import make_lm
from packs_ground import make_pack, make_trained


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base whose answers have no end for a long while, and a pack."""
    base = edit_config(make_lm(tmp_path_factory.mktemp("verb") / "long"), max_position_embeddings=16384)
    trained = make_trained(base, base.parent / "t", 0, by=0.3, after=(1,))
    return [str(base), "--pack", str(make_pack(trained, base.parent / "code.pack", "code").folder)]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_process_serves_until_it_is_told_to_end(long: list[str], by: signal.Signals) -> None:
    """Ended in the middle of an answer, it is gone at once, and nothing has gone wrong."""
    options = ["--route", "auto", "--port", "0", "--key-variable", "OURS", "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "blockexpand", "serve", *long, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OURS": "sk-ours", "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    try:
        told = json.loads("".join(iter(lambda: child.stdout.readline(), "}\n")) + "}")  # ty: ignore[unresolved-attribute]
        assert told["models"] == ["long", "base", "code", "all", "auto"]
        endpoint = Endpoint(told["url"], "long", key="sk-ours", retries=0)
        endpoint.check()
        asked = {"model": "base", "messages": [{"role": "user", "content": "the cat"}], "temperature": 0}
        assert endpoint.ask(Request(messages=asked["messages"], max_tokens=4)).completion_tokens == 4
        endpoint.close()
        connection = http.client.HTTPConnection("127.0.0.1", int(told["url"].split(":")[2].split("/")[0]), timeout=120)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-ours"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked | {"stream": True}), headers)
        response = connection.getresponse()
        assert response.read(1) == b"d"
        child.send_signal(by)
        rest = response.read().decode()
        _, error = child.communicate(timeout=60)
        assert child.returncode == 0
        assert not any(word in error for word in ("Traceback", "blockexpand:", "ERROR")), error
        assert "the answer was stopped before its end, as the server ends" in rest
        assert "[DONE]" not in rest
    finally:
        child.kill()


@pytest.fixture
def begun(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """Servers that say where they are, and end."""
    made: list[Service] = []

    def serve(found: Speaker, service: Service, listening: Callable[[str, list[str]], None]) -> None:
        made.append(service)
        listening(f"http://{service.host}:{service.port}/v1", list(names_of(found, service.name)))

    monkeypatch.setattr(serving, "serve", serve)
    return made


def test_what_it_says(
    begun: list[Service],
    tiny: Path,
    packs: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["serve", str(tiny), "--pack", str(packs[0])]) == 0
    shown = capsys.readouterr()
    first, page, second, third = shown.out.splitlines()
    assert page == "page: http://127.0.0.1:8000/"
    assert first == "http://127.0.0.1:8000/v1 (Ctrl-C ends)"
    assert second == "models: tiny, base, a, all, auto"
    assert third.startswith("curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{")
    assert json.loads(third[third.index("{") : -1])["model"] == "tiny"
    assert "anyone" not in shown.err
    assert begun[0] == Service()
    assert run(["serve", str(tiny), "--quiet", "--name", "mine", "--port", "9", "--host", "0.0.0.0"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == (
        "blockexpand: anyone who reaches 0.0.0.0:9 may use the model; --key-variable NAME asks for a key"
    )
    assert begun[1] == Service(name="mine", port=9, host="0.0.0.0")
    monkeypatch.setenv("OURS", "sk-ours")
    assert run(["serve", str(tiny), "--host", "0.0.0.0", "--key-variable", "OURS"]) == 0
    shown = capsys.readouterr()
    assert '-H "Authorization: Bearer $OURS"' in shown.out
    assert "anyone" not in shown.err
    assert "sk-ours" not in shown.out + shown.err + repr(begun[2])
    assert begun[2].key == "sk-ours"


def test_the_line_it_shows_for_a_model_without_a_template(
    begun: list[Service], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = shutil.copytree(tiny, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert run(["serve", str(plain)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("curl http://127.0.0.1:8000/v1/completions -H")
    assert set(json.loads(line[line.index("{") : -1])) == {"model", "prompt"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--route", "auto"], "tiny has no packs to choose among"),
        (["--key-variable", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
        (["--log", "nowhere/at/all"], "the log nowhere/at/all cannot be written: No such file or directory"),
        (["--port", "70000"], "127.0.0.1:70000 cannot be listened on"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid:8000 cannot be listened on"),
        (["--pack", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(tiny: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tiny), *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error


def test_without_the_extra_it_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", "nowhere"]) == 2
    assert "uvicorn is not installed, which serve needs; pip install 'blockexpand[chat]'" in capsys.readouterr().err
