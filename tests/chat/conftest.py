"""What the tests of the room share; chat_ground.py makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.serving import Speaker, open_speaker
from chat_ground import write_expanded


@pytest.fixture(scope="session")
def expanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_expanded(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def speaker(expanded: Path) -> Speaker:
    return open_speaker(expanded)
