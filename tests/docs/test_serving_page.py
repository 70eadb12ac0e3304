"""What docs/serving.md says to ask is asked, as it stands, of a server of tiny packs under the same names."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import ROOT, blocks_of, commands_of

from blockexpand.cli.main import run
from blockexpand.sandbox import describe
from blockexpand.serving import open_speaker
from helpers import edit_config
from lm_helpers import make_lm
from packs_ground import make_pack, make_trained
from serving_ground import Served, served

PAGE = ROOT / "docs" / "serving.md"
COMMANDS = [command for command in commands_of(PAGE) if "http://localhost:8000" in command.text]
NAMES = ["BASE", "base", "code", "law", "all", "auto"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving-page")
    base = edit_config(make_lm(folder / "BASE"), max_position_embeddings=4096)
    made = {
        name: make_trained(base, folder / name, seed, by=0.3, after=(1,)) for seed, name in enumerate(("code", "law"))
    }
    packs = [make_pack(path, folder / f"{name}.pack", name).folder for name, path in made.items()]
    with served(open_speaker(base, packs, plain=True), routes=True) as found:
        yield found


def test_the_page_names_what_is_there(server: Served) -> None:
    assert [entry["id"] for entry in server.ask("/v1/models").data["data"]] == NAMES
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r'"model": "(\w+)"', text) + re.findall(r'model="(\w+)"', text)) <= set(NAMES)
    assert len([command for command in COMMANDS if command.words[0] == "curl"]) >= 4


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.words[0] == "curl"], ids=lambda command: str(command.line)
)
def test_its_requests_are_answered(server: Served, command) -> None:
    line = command.text.replace("http://localhost:8000/v1", server.url)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if '"stream": true' in line:
        assert done.stdout.endswith("data: [DONE]\n\n")
        assert '"finish_reason": "' in done.stdout
    else:
        assert json.loads(done.stdout)["object"] in ("list", "chat.completion", "text_completion")


@pytest.mark.skipif(describe().startswith("sandbox: none"), reason=describe())
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "blockexpand"], ids=lambda c: str(c.line))
def test_its_commands_run(server: Served, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([word.replace("http://localhost:8000/v1", server.url) for word in command.words[1:]]) == 0


def test_its_python_runs(server: Served) -> None:
    (block,) = (block for block in blocks_of(PAGE) if block.label == "python")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(block.text.replace("http://localhost:8000/v1", server.url), {})
    assert re.search(r"^\[('code'|'law')?\]$", shown.getvalue(), re.M)
