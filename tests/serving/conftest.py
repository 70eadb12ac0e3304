"""One tiny base with packs and one expanded model, served for all tests of the room."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockexpand.packs import route as routing
from blockexpand.records.pack import Rule
from blockexpand.serving import Speaker, open_speaker
from serving_ground import Served, served, write_expanded, write_packs


@pytest.fixture(scope="session")
def expanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expanded model; its base is in `base` beside it."""
    return write_expanded(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def tiny(expanded: Path) -> Path:
    """The base, under a name of its own."""
    return (expanded.parents[1] / "base").rename(expanded.parents[1] / "tiny")


@pytest.fixture(scope="session")
def packs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_packs(tiny, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session")
def speaker(tiny: Path, packs: list[Path]) -> Speaker:
    return open_speaker(tiny, packs, plain=True, dtype="float32")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said here is short, so that less evidence decides."""
    rule = dataclasses.replace(Rule(), evidence=0.0)
    monkeypatch.setattr(routing, "Rule", lambda: rule)


@pytest.fixture(scope="session")
def talker(expanded: Path) -> Speaker:
    """The expanded model."""
    return open_speaker(expanded, dtype="float32")


@pytest.fixture(scope="session")
def server(speaker: Speaker) -> Iterator[Served]:
    with served(speaker) as made:
        yield made
