"""The shipped base, expanded, its new blocks moved as training would move them; made once for the room."""

from __future__ import annotations

import pytest
import torch

from blockexpand.data import TINY_BASE as BASE
from packs_ground import make_trained
from world_ground import AFTER, World, logits_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Folders that tests read and never change. The new blocks matter: without them other words are said."""
    made = World(BASE, make_trained(BASE, tmp_path_factory.mktemp("world") / "grown", by=0.1, after=AFTER))
    tokens_BT = made.tokens()
    with_BTV, without_BTV = logits_of(made.model(), tokens_BT), logits_of(made.model(BASE), tokens_BT)
    assert not torch.equal(with_BTV.argmax(-1), without_BTV.argmax(-1))
    return made
