"""What training tests share: a tiny language model, its expansion, and corpora, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.records.run import DataSettings, FullArm, OptimizerSettings, TrainSettings
from blockexpand.training import train
from lm_helpers import make_chats, make_corpus, make_expanded, make_general, make_lm
from training_ground import Ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    root = tmp_path_factory.mktemp("ground")
    untrained = make_lm(root / "untrained")
    general = make_general(root / "general", untrained)
    base = learnt(untrained, general, root / "learning")
    return Ground(
        base=base,
        expanded=make_expanded(root / "expanded", base),
        domain=make_corpus(root / "domain", base, domain=True),
        general=general,
        chats=make_chats(root / "chats", base),
    )


def learnt(untrained: Path, general: Path, out: Path) -> Path:
    """A base that knows its general text, so that there is something to forget."""
    settings = TrainSettings(
        model=str(untrained),
        out=str(out),
        arm=FullArm(kind="full"),
        data=DataSettings(domain=str(general), validation_rows=0),
        domain_tokens=150 * 8 * 32,
        rows_per_step=8,
        rows_per_pass=8,
        optimizer=OptimizerSettings(lr=1e-2),
    )
    train(settings)
    return out / "model"
