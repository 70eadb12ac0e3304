"""The forgetting budget: a controller of the general rows' weight, and the choice of the checkpoint.

Both stand on one figure, the rise: general validation loss over the base's, minus 1. The base's is what
the model itself gave at step 0, when every arm still is the base.
"""

from __future__ import annotations

from blockexpand.records.run import Measurement

# Chosen by trial on the tiny base (docs/log.md): quick to tighten, slow to loosen, never off.
_AIM = 0.75
"""The share of the budget that the controller steers towards."""
_RESPONSE = 2.0
"""Doublings of the weight for each budget's worth of rise above the aim."""
_MOST_LOOSER, _MOST_TIGHTER = -0.5, 2.0
"""Doublings at one measurement."""
_SMALLEST, _LARGEST = 0.25, 64.0


def adapted_weight(weight: float, rise: float, budget: float) -> float:
    """The weight of general rows after a measurement: more the further the rise is above the aim, less below it."""
    doublings = _RESPONSE * (rise / budget - _AIM)
    weight *= 2 ** min(max(doublings, _MOST_LOOSER), _MOST_TIGHTER)
    return min(max(weight, _SMALLEST), _LARGEST)


def is_better(new: Measurement, best: Measurement | None, budget: float | None) -> bool:
    """Whether `new` is the checkpoint to ship so far: the lowest domain loss inside the budget.

    Without a budget the latest is the one. The measurement of step 0 is inside where the model starts as the
    base, so there is always one to ship, even if it has gained nothing. Where it does not, the one with the
    smallest rise is kept until one is inside.
    """
    if best is None or budget is None:
        return True
    # Written so that NaN is outside: no comparison with it holds.
    inside = new.rise is None or new.rise <= budget
    if best.rise is None or best.rise <= budget:
        return inside and new.domain < best.domain
    return inside or (new.rise or 0.0) < best.rise
