"""What the base wrote is measured by the KL to it, which is the rise of its loss without the luck of the draw."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from blockexpand.errors import Interrupted
from blockexpand.records.run import DataSettings, FullArm, RetentionSettings, read_metrics
from blockexpand.training import train
from blockexpand.training.arms import load_model
from blockexpand.training.budget import rise_of
from blockexpand.training.data import OWN, open_data
from blockexpand.training.document_losses import DocumentLosses
from blockexpand.training.loop import Loop
from blockexpand.training.processes import Root, World
from training_ground import Ground

CPU = World(device=torch.device("cpu"))
BUDGET = RetentionSettings(replay=0.25, kl_weight=8.0, forgetting_budget=0.05)


def own_text(ground: Ground, out: Path, **changes: object) -> None:
    """A run whose general text the base writes."""
    data = DataSettings(domain=str(ground.domain), general="self", validation_rows=4)
    train(ground.settings(out, data=data, retention=BUDGET, **changes))


def measuring(model: PreTrainedModel, own: frozenset[str]) -> DocumentLosses:
    """What measures a model in one process, of whose texts the base wrote some."""
    autocast = torch.autocast("cpu", enabled=False)
    return DocumentLosses(model=model, root=Root(), world=CPU, rows_per_pass=3, autocast=autocast, own=own)


def test_the_kl_is_the_mean_rise_with_less_spread(ground: Ground, tmp_path: Path) -> None:
    own_text(ground, tmp_path / "run")
    settings = ground.settings(
        tmp_path / "run",
        data=DataSettings(domain=str(ground.domain), general="self", validation_rows=4),
        retention=BUDGET,
    )
    texts = open_data(settings, CPU).calibration
    base = load_model(ground.base, torch.float32)
    moved = load_model(ground.base, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    moved.requires_grad_(True)
    losses = measuring(moved, OWN)
    at_base = losses.of_base(texts, base)
    assert at_base.keys() == texts.keys() == OWN
    by_kl, by_tokens = losses.of(texts, at_base=at_base), losses.of(texts)
    base_again, base_known = losses.of(texts, base, at_base=at_base), losses.of(texts, known=at_base)
    for kind in OWN:
        known = at_base[kind].sums.losses_N
        kl, tokens = (rise_of(known, sums[kind].losses_N) for sums in (by_kl, by_tokens))
        assert kl.mean > 0.001
        # One is the other's expectation: they differ by what the tokens' own draw leaves open.
        assert abs(kl.mean - tokens.mean) < 4 * tokens.spread / np.sqrt(tokens.num_documents)
        assert kl.spread < tokens.spread
        assert (by_kl[kind].losses_N > known).all()
        # The base itself has risen by nothing, not by rounding.
        assert np.array_equal(base_again[kind].losses_N, known)
        assert np.array_equal(base_known[kind].losses_N, known)


def test_the_kl_is_that_of_the_whole_logits(ground: Ground) -> None:
    base, moved = (load_model(folder, torch.float32) for folder in (ground.base, ground.expanded))
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.1)
    moved.requires_grad_(True)
    held = open_data(ground.settings(Path("unused")), CPU).validation["general"]
    losses = measuring(moved, frozenset({"general"}))
    at_base = losses.of_base({"general": held}, base)
    found = losses.of({"general": held}, at_base=at_base)["general"].losses_N - at_base["general"].sums.losses_N
    expected = np.zeros(held.num_documents)
    for batch, documents_R in held.batches(4, CPU):
        log_q, log_p = (
            torch.log_softmax(
                batch.predicting(
                    model(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, use_cache=False).logits
                ).double(),
                -1,
            )
            for model in (base, moved)
        )
        np.add.at(expected, documents_R, (log_q.exp() * (log_q - log_p)).sum(-1).detach().numpy())
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("arm", ["blocks", "full"])
def test_a_run_on_its_bases_text_goes_on_as_it_was(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """What the base says of its text is made again where a run goes on, from weights that have moved since."""
    changes = {} if arm == "blocks" else {"model": str(ground.base), "arm": FullArm(kind="full")}
    own_text(ground, tmp_path / "whole", **changes)
    real = Loop._stops
    with monkeypatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr(Loop, "_stops", lambda self, stopping: real(self, stopping) or after_five(self))
        own_text(ground, tmp_path / "cut", **changes)
    assert len([row for row in read_metrics(tmp_path / "cut" / "metrics.jsonl") if row["kind"] == "train"]) < 8
    data = DataSettings(domain=str(ground.domain), general="self", validation_rows=4)
    train(ground.settings(tmp_path / "cut", data=data, retention=BUDGET, **changes), resume=True)
    whole, cut = (
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    )
    assert cut == whole
    assert (tmp_path / "cut" / "budget.json").read_bytes() == (tmp_path / "whole" / "budget.json").read_bytes()


def after_five(loop: Loop) -> bool:
    """Whether the run has done five steps."""
    rows = read_metrics(loop.run_folder / "metrics.jsonl")
    return any(row["step"] == 5 for row in rows if row["kind"] == "train")
