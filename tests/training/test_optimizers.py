"""Optimisers: every parameter has exactly one, decay falls on matrices, rates follow the schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from blockexpand.errors import RecordError, TrainingError
from blockexpand.records.run import OptimizerSettings, ScheduleSettings
from blockexpand.training import optimizers
from blockexpand.training.optimizers import Muon, build_optimizers, rate_at, set_rate


def parameters() -> dict[str, nn.Parameter]:
    return {
        "model.embed_tokens.weight": nn.Parameter(torch.zeros(10, 4)),
        "model.layers.0.mlp.up_proj.weight": nn.Parameter(torch.zeros(6, 4)),
        "model.layers.0.mlp.down_proj.weight": nn.Parameter(torch.zeros(4, 6)),
        "model.layers.0.input_layernorm.weight": nn.Parameter(torch.ones(4)),
    }


def by_name(optimizers: list[torch.optim.Optimizer], trainable: dict[str, nn.Parameter]) -> dict[str, tuple]:
    names = {id(p): n for n, p in trainable.items()}
    return {
        names[id(p)]: (type(o).__name__, group["weight_decay"], group["lr"])
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
    }


def test_decay_falls_on_the_blocks_matrices_and_writers_have_their_own_rate() -> None:
    trainable = parameters()
    settings = OptimizerSettings(lr=0.1, weight_decay=0.2, writer_lr_scale=3.0)
    writers = frozenset({"model.layers.0.mlp.down_proj.weight"})
    found = by_name(build_optimizers(trainable, writers, settings), trainable)
    assert found == {
        "model.embed_tokens.weight": ("AdamW", 0.0, 0.1),
        "model.layers.0.mlp.up_proj.weight": ("AdamW", 0.2, 0.1),
        "model.layers.0.mlp.down_proj.weight": ("AdamW", 0.2, pytest.approx(0.3)),
        "model.layers.0.input_layernorm.weight": ("AdamW", 0.0, 0.1),
    }


def test_rates_by_pattern_multiply() -> None:
    trainable = parameters()
    scales = {"*.mlp.*": 2.0, "*layernorm.weight": 5.0, "*.up_proj.weight": 4.0}
    settings = OptimizerSettings(lr=0.1, writer_lr_scale=3.0, lr_scales=scales)
    writers = frozenset({"model.layers.0.mlp.down_proj.weight"})
    found = by_name(build_optimizers(trainable, writers, settings), trainable)
    assert {name.split(".", 2)[-1]: rate for name, (_, _, rate) in found.items()} == pytest.approx(
        {"weight": 0.1, "0.mlp.up_proj.weight": 0.8, "0.mlp.down_proj.weight": 0.6, "0.input_layernorm.weight": 0.5}
    )


def test_a_pattern_that_names_nothing_and_a_rate_of_nothing_are_refused() -> None:
    with pytest.raises(TrainingError, match="lr_scales: '.*up_projj' names nothing that trains"):
        build_optimizers(parameters(), frozenset(), OptimizerSettings(lr_scales={"*up_projj": 2.0}))
    with pytest.raises(RecordError, match="lr_scales.*'a'.*0"):
        OptimizerSettings(lr_scales={"a": 0.0})


def test_muon_moves_the_blocks_matrices_and_nothing_else() -> None:
    trainable = parameters()
    found = by_name(build_optimizers(trainable, frozenset(), OptimizerSettings(name="muon")), trainable)
    assert {name for name, (kind, *_) in found.items() if kind == "Muon"} == {
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    }
    assert set(found) == set(trainable)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_takes_the_steps_of_torch_s(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "computes_in_bfloat16", lambda _: False)
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=draw)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = (theirs - 1).norm()
    assert (ours - theirs).norm() < 0.03 * moved, "torch's are rounded to bfloat16, and no more differs"


def test_the_schedules() -> None:
    cosine = ScheduleSettings(kind="cosine", warmup=0.1, final=0.1)
    rates = [rate_at(step, 100, cosine) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=0.001)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    linear = ScheduleSettings(kind="linear", warmup=0.0)
    assert [rate_at(s, 4, linear) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert rate_at(3, 4, ScheduleSettings(kind="constant", warmup=0.0)) == 1.0
    assert rate_at(0, 1, cosine) == 1.0


def test_rates_are_shares_of_each_groups_own_peak() -> None:
    optimizers = build_optimizers(
        parameters(),
        frozenset({"model.layers.0.mlp.down_proj.weight"}),
        OptimizerSettings(lr=0.1, writer_lr_scale=2.0),
    )
    set_rate(optimizers, 0.5)
    set_rate(optimizers, 0.25)
    assert sorted({group["lr"] for o in optimizers for group in o.param_groups}) == pytest.approx([0.025, 0.05])
