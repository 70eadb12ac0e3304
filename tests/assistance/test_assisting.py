"""What a newcomer is told and given: the doctor's words, and a recipe that runs."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from blockexpand.assistance import Draft, diagnose, draft_recipe
from blockexpand.assistance.diagnosing import MODES, fits_in
from blockexpand.assistance.sizes import SIZES, state_bytes
from blockexpand.cli.main import run
from blockexpand.errors import RecordError, SandboxError, UsageError
from blockexpand.records.run import load_settings


def test_the_doctor_tells_what_is_there_and_what_installs_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch {real('torch')}" in told
    assert "missing: pip install 'blockexpand[quantised]'" in told
    assert "post-pretrain new blocks, base in nf4" in told
    (line,) = [line for line in told.splitlines() if line.startswith("BASE=")]
    pasted = subprocess.run(["sh", "-c", f'{line}\nls "$BASE"'], capture_output=True, text=True, check=True).stdout
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(pasted.split()), "to be pasted as it stands"
    assert run(["doctor", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["format"] == "blockexpand.diagnosis"
    assert value["num_cores"] > 0
    assert value["tiny_base"] == shlex.split(line.removeprefix("BASE="))[0]
    assert diagnose().tiny_base is None


def test_the_doctor_goes_on_where_nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise SandboxError("nothing isolates here")

    monkeypatch.setattr("blockexpand.sandbox.describe", refuse)
    found = diagnose()
    assert (found.sandbox, found.sandbox_problem) == (None, "nothing isolates here")


def test_parameters_are_those_of_the_models() -> None:
    # As their cards on the hub count them, in billions; biases and norms are left out here.
    cards = {"0.5B": 0.494, "1.5B": 1.54, "3B": 3.09, "8B": 8.03, "14B": 14.77, "32B": 32.76, "70B": 70.55}
    for size in SIZES:
        assert (size.num_blocks * size.block + size.outside) / 1e9 == pytest.approx(cards[size.name], rel=0.01)


def test_more_memory_fits_more_and_fewer_bits_need_less() -> None:
    small, large = fits_in(8 * 10**9), fits_in(80 * 10**9)
    assert [fit.mode for fit in small] == list(MODES)
    assert large[0].largest == "14B"
    assert large[0].needed_bytes <= 0.75 * 80e9
    assert fits_in(10**6)[0].largest is None
    needs = [state_bytes(SIZES[3], width, "new") for width in (2.0, 1.0, 0.5625)]
    assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize("machine", ["cpu", "gpu-24gb", "gpu-80gb"])
@pytest.mark.parametrize("kind", ["train", "sft"])
def test_a_drafted_recipe_is_one(tmp_path: Path, kind: str, machine: str) -> None:
    draft = Draft(kind=kind, model="yes", data="a: b # c", machine=machine, tokens=5000, budget=0.02)  # ty: ignore[invalid-argument-type]
    settings = load_settings(draft_recipe(draft, tmp_path / "r.yaml"))
    assert (settings.model, settings.data.domain, settings.domain_tokens) == ("yes", "a: b # c", 5000)
    assert settings.arm.kind == {"train": "blocks", "sft": "full"}[kind]
    assert settings.retention.forgetting_budget == {"train": 0.02, "sft": None}[kind]
    assert settings.base_precision == ("int8" if (kind, machine) == ("train", "gpu-24gb") else "same")


def test_what_is_there_is_kept_and_nothing_bad_is_written(tmp_path: Path) -> None:
    path = draft_recipe(Draft(model="m", data="d"), tmp_path / "r.yaml")
    with pytest.raises(UsageError, match=r"r\.yaml is there already"):
        draft_recipe(Draft(model="other", data="d"), path)
    assert load_settings(draft_recipe(Draft(model="other", data="d"), path, overwrite=True)).model == "other"
    with pytest.raises(RecordError, match=r"budget: expected a share in \(0, 1\), e.g. 0.01, got 2"):
        Draft(model="m", data="d", budget=2)


def test_without_a_terminal_flags_must_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    path = tmp_path / "r.yaml"
    with pytest.raises(UsageError, match="--data missing, and there is no terminal"):
        run_raising(["init", str(path), "--model", "m"])
    assert not path.exists()
    assert run(["init", str(path), "--model", "m", "--data", "d"]) == 0


def test_questions_fill_what_flags_leave_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[str] = []
    answers = {"Prepared folder to learn": "texts", "Tokens": "2_000", "Machine": "cpu"}

    def answer(question: str) -> str:
        asked.append(question)
        return next((said for start, said in answers.items() if question.startswith(start)), "")

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)
    path = tmp_path / "r.yaml"
    assert run(["init", str(path), "--model", "m"]) == 0
    settings = load_settings(path)
    assert (settings.data.domain, settings.data.general, settings.domain_tokens) == ("texts", "self", 2000)
    assert settings.precision == "float32"
    assert not any("expanded checkpoint" in question for question in asked)
    answers["Tokens"] = "many"
    with pytest.raises(UsageError, match="tokens 'many' is not a number"):
        run_raising(["init", str(tmp_path / "s.yaml"), "--model", "m"])


def run_raising(words: list[str]) -> None:
    """The verb's own error, before `run` makes a line of it."""
    from blockexpand.cli.main import build_app

    build_app()(words)
