"""The budget: which checkpoint is shipped, and how the weight of general text moves."""

from __future__ import annotations

import pytest

from blockexpand.records.run import Measurement
from blockexpand.training.retention import adapted_weight, is_better


def at(step: int, domain: float, rise: float | None) -> Measurement:
    return Measurement(step=step, domain=domain, general=None if rise is None else 2 * (1 + rise), rise=rise)


def test_the_lowest_domain_loss_inside_the_budget_is_shipped() -> None:
    best = None
    curve = [at(0, 5.0, 0.0), at(1, 4.0, 0.009), at(2, 3.0, 0.02), at(3, 3.5, 0.01), at(4, 3.6, -0.5)]
    for measured in curve:
        best = measured if is_better(measured, best, 0.01) else best
    assert best == curve[3]


def test_without_a_budget_the_latest_is_shipped() -> None:
    assert is_better(at(2, 9.0, 0.5), at(1, 3.0, 0.0), None)


def test_a_loss_that_is_not_a_number_is_never_better() -> None:
    assert not is_better(at(1, float("nan"), 0.0), at(0, 5.0, 0.0), 0.01)
    assert not is_better(at(1, 4.0, float("nan")), at(0, 5.0, 0.0), 0.01)


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
