"""The tiny base and its texts, made once."""

from __future__ import annotations

import pytest

from comparison_ground import Place
from lm_helpers import make_corpus, make_general, make_lm


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    base = make_lm(root / "base")
    return Place(
        base,
        make_corpus(root / "domain", base, domain=True),
        make_general(root / "general", base),
    )
