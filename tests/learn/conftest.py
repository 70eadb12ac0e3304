"""One base, one output: made once, read by many."""

from __future__ import annotations

import pytest

from blockexpand.records.learn import LearnRecord
from learn_ground import Ground, make_ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("learn"))


@pytest.fixture(scope="session")
def learnt(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> LearnRecord:
    return ground.learn(tmp_path_factory.mktemp("learnt") / "out")
