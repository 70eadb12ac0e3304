"""A story that tests read and never change: base, expansion, run, measurements, pack; and a hub to push to."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from blockexpand.cli.main import run
from hub_stand_in import KEY, Hub, hub_stand_in
from lm_helpers import make_corpus, make_lm

BASE_CARD = "---\nlicense: llama2\nlanguage:\n- en\n---\n\n# The base\n"


@dataclass(frozen=True)
class Story:
    """Folders, made by the verbs."""

    base: Path
    deeper: Path
    run: Path
    records: Path
    """Of the run's model."""
    base_records: Path
    pack: Path

    @property
    def model(self) -> Path:
        return self.run / "model"


def done(*words: object) -> None:
    assert run([*(str(word) for word in words), "--quiet"]) == 0


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("story")
    base = make_lm(root / "base")
    (base / "README.md").write_text(BASE_CARD)
    domain, general = make_corpus(root / "domain", base, domain=True), make_corpus(root / "general", base, seed=2)
    done("expand", base, root / "deeper", "--blocks", 2)
    done("card", root / "deeper", "--base-model", "org/tiny", "--description", "Reads code.", "--repo", "me/untrained")
    recipe = {
        "model": str(root / "deeper"),
        "out": str(root / "code"),
        "data": {"domain": str(domain), "general": str(general), "validation_rows": 2},
        "domain_tokens": 4 * 4 * 32,
        "rows_per_step": 4,
        "rows_per_pass": 4,
        "measure_every_steps": 2,
        "optimizer": {"lr": 3e-2},
        "retention": {"replay": 0.25, "kl_weight": 2.0, "forgetting_budget": 0.5},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done("train", root / "recipe.yaml")
    corpora = ("--data", f"domain={domain}", "--data", f"general={general}")
    done("eval", root / "code" / "model", *corpora, "--out", root / "after")
    done("eval", base, *corpora, "--out", root / "before")
    done("pack", "extract", root / "code", root / "packed", "--name", "code", "--licence", "mit")
    return Story(base, root / "deeper", root / "code", root / "after", root / "before", root / "packed")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """An empty hub that huggingface_hub takes for the hub, and a key for it."""
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", KEY)
        yield server


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """`refused(*words)`: the one line with which the command line refuses them."""

    def line(*words: object) -> str:
        capsys.readouterr()
        assert run([*(str(word) for word in words), "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return err

    return line


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """`said(*words)`: what a verb prints as JSON."""

    def value(*words: object) -> dict:
        capsys.readouterr()
        assert run([*(str(word) for word in words), "--quiet", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return value
