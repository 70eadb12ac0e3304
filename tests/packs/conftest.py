"""A base, and packs of it whose blocks were moved as training would; made once for all tests of the room."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import MakeBase
from packs_ground import PackGround, make_ground


@pytest.fixture(scope="session")
def ground(tiny_base: MakeBase, tmp_path_factory: pytest.TempPathFactory) -> PackGround:
    """Folders that tests read and never change."""
    return make_ground(tiny_base("llama"), tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session")
def sharded_ground(tiny_base: MakeBase, tmp_path_factory: pytest.TempPathFactory) -> PackGround:
    """The same of a base in shards."""
    return make_ground(tiny_base("llama", sharded=True), tmp_path_factory.mktemp("sharded-packs"))


@pytest.fixture
def both(ground: PackGround, sharded_ground: PackGround) -> tuple[PackGround, PackGround]:
    """In one file, and in shards."""
    return ground, sharded_ground


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`each_ground` is one after the other."""
    if "each_ground" in metafunc.fixturenames:
        metafunc.parametrize("each_ground", ["one file", "shards"], indirect=True)


@pytest.fixture
def each_ground(request: pytest.FixtureRequest, both: tuple[PackGround, PackGround]) -> PackGround:
    """The base in one file, or in shards."""
    return both[request.param == "shards"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A name that is free."""
    return tmp_path / "out"
