"""What the tests of publishing stand on; the fixture that makes it is in publishing/conftest.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from blockexpand.cli.main import run
from lm_helpers import make_corpus, make_general, make_lm

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
    """Run the command line, which does it."""
    assert run([*(str(word) for word in words), "--quiet"]) == 0


def make_story(root: Path) -> Story:
    """Base, expansion, run, measurements and pack, by the verbs."""
    base = make_lm(root / "base")
    (base / "README.md").write_text(BASE_CARD)
    domain, general = (
        make_corpus(root / "domain", base, domain=True),
        make_general(root / "general", base),
    )
    done("expand", base, root / "deeper", "--blocks", 2)
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
    done(
        "pack",
        "extract",
        root / "code",
        root / "packed",
        "--name",
        "code",
        "--licence",
        "mit",
        "--description",
        "Reads code.",
    )
    return Story(base, root / "deeper", root / "code", root / "after", root / "before", root / "packed")
