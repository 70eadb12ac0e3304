"""`doctor`: what is told of a machine, also where torch or a sandbox is missing."""

from __future__ import annotations

import json
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from blockexpand.cli import doctor
from blockexpand.cli.main import run
from blockexpand.errors import SandboxError


def test_the_doctor_tells_what_is_there_and_what_installs_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert run(["doctor", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["format"] == "blockexpand.diagnosis"
    assert value["torch"] == real("torch")
    assert value["num_cores"] > 0
    assert {one["name"]: one["version"] for one in value["libraries"]}["bitsandbytes"] is None
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in Path(value["tiny_base"]).iterdir()
    }
    assert run(["plan", value["tiny_base"], "--blocks", "2", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert value["tiny_base_training_bytes"] == cost["training_memory_bytes"]


def test_what_is_missing_is_told_and_not_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise SandboxError("nothing isolates here")

    monkeypatch.setattr("blockexpand.sandbox.describe", refuse)
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import no_such_torch")
    found = doctor.diagnose()
    assert (found.sandbox, found.sandbox_problem, found.devices) == (None, "nothing isolates here", ())
    assert "no_such_torch" in (found.device_problem or "")
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "no_such_torch" in told
    (line,) = [line for line in told.splitlines() if line.startswith("BASE=")]
    pasted = subprocess.run(["sh", "-c", f'{line}\necho "$BASE"'], capture_output=True, text=True, check=True).stdout
    assert pasted.strip() == shlex.split(line.removeprefix("BASE="))[0]
