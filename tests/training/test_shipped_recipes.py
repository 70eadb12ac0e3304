"""The recipes that come with the project can be read: no key has been renamed under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.comparison import load_recipe
from blockexpand.corpus import load_recipe as load_corpus_recipe
from blockexpand.training.running import load_settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TINY_BASE = Path(__file__).parents[2] / "src/blockexpand/demonstration/tiny-base.yaml"


def test_there_are_some() -> None:
    assert {"compare.yaml", "post-pretrain-7b.yaml", "instruct-7b.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", [*RECIPES, TINY_BASE], ids=lambda path: path.stem)
def test_it_is_read(path: Path) -> None:
    if path.stem.startswith("compare"):
        assert len(load_recipe(path).arms) > 1
    elif path.stem.startswith("prepare"):
        assert load_corpus_recipe(path).sources
    else:
        assert load_settings(path).domain_tokens > 0
