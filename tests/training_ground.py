"""What a training test stands on: a tiny language model, its expansion, and corpora, made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from blockexpand.records.run import (
    NO_RETENTION,
    BlocksArm,
    DataSettings,
    FullArm,
    OptimizerSettings,
    RetentionSettings,
    TrainSettings,
)
from blockexpand.training import train
from lm_helpers import make_chats, make_corpus, make_expanded, make_general, make_lm

KEEPING = RetentionSettings(replay=0.5, ce_weight=1.0, kl_weight=0.5, forgetting_budget=0.05)


@dataclasses.dataclass(frozen=True)
class Ground:
    """Folders that tests read and never change."""

    base: Path
    expanded: Path
    domain: Path
    general: Path
    chats: Path

    def settings(self, out: Path, **changes: Any) -> TrainSettings:
        """A short run of the arm `blocks`."""
        values: dict[str, Any] = {
            "model": str(self.expanded),
            "out": str(out),
            "arm": BlocksArm(),
            "data": DataSettings(domain=str(self.domain), general=str(self.general), validation_rows=4),
            "domain_tokens": 8 * 4 * 32,
            "rows_per_step": 4,
            "rows_per_pass": 4,
            "optimizer": OptimizerSettings(lr=3e-3),
            "measure_every_steps": 4,
            "checkpoint_every_steps": 3,
            "retention": NO_RETENTION,
            "precision": "float32",
            "track": (),
        }
        return TrainSettings(**(values | changes))


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
        retention=NO_RETENTION,
    )
    train(settings)
    return out / "model"


SHARDED_RUNS = ("keeping", "passes", "half", "tuning", "whole", "muon", "again", "own", "own-whole")
"""Runs that are done by one process and by two, and compared."""


def sharded_settings(ground: Ground, name: str, out: Path) -> TrainSettings:
    """One of SHARDED_RUNS."""
    chats = DataSettings(domain=str(ground.chats), validation_rows=4)
    own = DataSettings(domain=str(ground.domain), general="self", validation_rows=4)
    changes: dict[str, dict[str, Any]] = {
        # Five rows for two processes, of them three general: unequal shares.
        "keeping": {"retention": KEEPING, "rows_per_step": 5},
        "passes": {"retention": KEEPING, "rows_per_step": 5, "rows_per_pass": 1},
        "half": {"precision": "bfloat16", "domain_tokens": 4 * 4 * 32},
        "tuning": {"arm": FullArm(kind="full"), "data": chats, "domain_tokens": 4 * 4 * 64},
        "whole": {"arm": FullArm(kind="full"), "retention": KEEPING, "domain_tokens": 4 * 2 * 32},
        "muon": {"optimizer": OptimizerSettings(name="muon", lr=3e-3), "domain_tokens": 4 * 4 * 32},
        "own": {"data": own, "retention": KEEPING, "domain_tokens": 4 * 2 * 32},
        "own-whole": {"data": own, "arm": FullArm(kind="full"), "retention": KEEPING, "domain_tokens": 4 * 2 * 32},
        "again": {"retention": KEEPING, "recompute": "from-first-new", "domain_tokens": 4 * 4 * 32},
    }
    return ground.settings(out, **changes[name])
