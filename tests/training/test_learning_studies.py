"""The studies of benchmarks/learning are recipes that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.records import from_plain, read_yaml
from blockexpand.records.comparison import CompareRecipe

STUDIES = sorted((Path(__file__).parents[2] / "benchmarks" / "learning").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_it_is_read(path: Path) -> None:
    settings = {"base": "x", "out": "y", "data": {"domain": "d", "general": "g"}, **read_yaml(path)}
    assert from_plain(CompareRecipe, settings, str(path)).arms
