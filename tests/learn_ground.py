"""What the tests of `learn` stand on; the fixture that makes it is in learn/conftest.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import blockexpand
from blockexpand.records.learn import LearnRecord
from lm_helpers import make_lm, sentences


@dataclasses.dataclass(frozen=True)
class Ground:
    """A base, data and general text that tests read and never change."""

    base: Path
    data: Path
    general: Path

    def learn(self, out: Path, **changes: Any) -> LearnRecord:
        """A short run."""
        return blockexpand.learn(self.base, self.data, out=out, **(self.options() | changes))

    def options(self) -> dict[str, Any]:
        """Of a short run whose budget a model that knows nothing can keep to."""
        return {"general": self.general, "tokens": 3000, "keep": 0.5}

    def command(self, out: Path) -> list[str]:
        """The same on the command line."""
        options = {f"--{name}": str(value) for name, value in self.options().items()}
        return [
            "learn",
            str(self.base),
            str(self.data),
            "--out",
            str(out),
            *(x for pair in options.items() for x in pair),
        ]


def write_texts(path: Path, texts: list[str]) -> Path:
    """JSON lines with a field `text`."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_ground(folder: Path) -> Ground:
    """A tiny base and two kinds of sentences."""
    return Ground(
        base=make_lm(folder / "base"),
        data=write_texts(folder / "data.jsonl", sentences(300, 1, ["compiles", "returns", "imports"])),
        general=write_texts(folder / "general.jsonl", sentences(700, 2)),
    )


def weights(folder: Path) -> dict[str, bytes]:
    """Every tensor file of an output."""
    files = sorted([*folder.glob("model/*.safetensors"), *folder.glob("pack/*.safetensors")])
    assert files
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
