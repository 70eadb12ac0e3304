"""The budget: which checkpoint is shipped, and how the weight of general text moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockexpand.records.run import Measurement
from blockexpand.training.budget import rise_of
from blockexpand.training.retention import (
    adapted_weight,
    budget_used,
    is_better,
    put_scale,
    scaled_loss,
    tightened_weight,
)


def at(step: int, domain: float, rise: float | None) -> Measurement:
    return Measurement(step=step, domain=domain, general=None if rise is None else 2 * (1 + rise), rise=rise)


def test_the_lowest_domain_loss_inside_the_budget_is_shipped() -> None:
    best = None
    curve = [at(0, 5.0, 0.0), at(1, 4.0, 0.009), at(2, 3.0, 0.02), at(3, 3.5, 0.01), at(4, 3.6, -0.5)]
    for measured in curve:
        best = measured if is_better(measured, best, 0.01, None) else best
    assert best == curve[3]


def test_without_a_budget_the_latest_is_shipped() -> None:
    assert is_better(at(2, 9.0, 0.5), at(1, 3.0, 0.0), None, None)


def test_a_loss_that_is_not_a_number_is_never_better() -> None:
    for base in (None, 5.0):
        assert not is_better(at(1, float("nan"), 0.0), at(0, 5.0, 0.0), 0.01, base)
        assert not is_better(at(1, 4.0, float("nan")), at(0, 5.0, 0.0), 0.01, base)


@pytest.mark.parametrize(
    ("weight", "used", "expected"),
    [
        (1.0, 0.9, 1.0),  # nine tenths of the budget, where it should be
        (1.0, 1.4, 2.0),
        (1.0, 10.0, 4.0),
        (1.0, -10.0, 2**-0.5),
        (60.0, 10.0, 64.0),
        (0.26, -10.0, 0.25),
    ],
)
def test_the_weight_tightens_outside_and_eases_well_inside(weight: float, used: float, expected: float) -> None:
    assert adapted_weight(weight, used) == pytest.approx(expected)


@pytest.mark.parametrize(("weight", "kl", "expected"), [(1.0, 0.05, 1.0), (1.0, 0.07, 2.0), (64.0, 0.07, 64.0)])
def test_a_step_far_outside_is_answered_at_once(weight: float, kl: float, expected: float) -> None:
    assert tightened_weight(weight, kl, 0.03) == expected


def used(step: int, domain: float, share: float) -> Measurement:
    return Measurement(step=step, domain=domain, general=2.0, rise=0.0, budget_used=share)


def test_the_foreseen_bound_decides_where_there_is_one() -> None:
    assert is_better(used(1, 4.0, 0.9), at(0, 5.0, 0.0), 0.01, None)
    assert not is_better(used(1, 4.0, 1.1), at(0, 5.0, 0.0), 0.01, None)


def test_what_can_be_scaled_is_chosen_by_what_scaling_leaves_of_it() -> None:
    inside, a_little_out, far_out = used(4, 4.5, 0.5), used(8, 4.0, 1.21), used(12, 3.5, 100.0)
    assert is_better(a_little_out, inside, 0.01, 5.0)  # 1 / 1.1 of a gain of 1, over a gain of 0.5
    assert not is_better(far_out, inside, 0.01, 5.0)  # a tenth of 1.5
    assert scaled_loss(a_little_out, 0.01, 5.0) == pytest.approx(5.0 - 1 / 1.1)
    assert not is_better(used(4, 25.7, 300.0), at(0, 5.0, 0.0), 0.01, 5.0)


def test_a_budget_is_used_up_sooner_on_fewer_documents() -> None:
    base = np.full(40, 30.0)
    rise = rise_of(base, base * (1 + np.linspace(-0.01, 0.015, 40)))
    few, many = (budget_used(rise, 0.01, number) for number in (60, 600))
    assert rise.mean / 0.01 < many < few


@pytest.mark.parametrize("origin", [0.0, -1.0, torch.tensor([0.3, -0.0, 1.1])])
def test_scales_0_and_1_are_exact(origin: float | torch.Tensor) -> None:
    learnt = {"writer": torch.tensor([0.1, -0.7, 1e-30]), "inner": torch.tensor([0.1])}
    held = {name: torch.zeros_like(value) for name, value in learnt.items()}
    put_scale(held, learnt, {"writer": origin}, 1.0)
    assert all(same_bits(held[name], learnt[name]) for name in held)
    put_scale(held, learnt, {"writer": origin}, 0.0)
    expected = origin if isinstance(origin, torch.Tensor) else torch.full((3,), origin)
    assert same_bits(held["writer"], expected)
    assert same_bits(held["inner"], learnt["inner"])
    put_scale(held, learnt, {"writer": origin}, 0.5, torch.bfloat16)
    assert torch.allclose(held["writer"], (expected + learnt["writer"]) / 2, atol=1e-2)
    assert same_bits(held["writer"], held["writer"].bfloat16().float())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
