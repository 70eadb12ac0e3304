"""Keeping to the budget while training: a controller of the general rows' weight, the choice of the checkpoint; and
how much of what was learnt is put on the model.

The first two stand on one figure: the share of the budget that the rise's upper bound is likely to take on the
documents that test it at the end. It is foreseen from the steering rows, which never take part in that test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from blockexpand.records.run import Measurement
from blockexpand.training.budget import Rise, scale_inside

# Chosen by trial on the tiny base (docs/log.md): quick to tighten, slow to loosen, never off.
_AIM = 0.9
"""The share of the budget that the controller steers the foreseen bound towards."""
_RESPONSE = 2.0
"""Doublings of the weight for each budget's worth of rise above the aim."""
_MOST_LOOSER, _MOST_TIGHTER = -0.5, 2.0
"""Doublings at one measurement."""
_SMALLEST, _LARGEST = 0.25, 64.0
_FAR = 2.0
"""How far beyond the budget a step's KL is answered at once."""


def budget_used(rise: Rise, budget: float, num_documents: int) -> float:
    """The share of the budget that the bound is likely to take on `num_documents` others, given the steering's rise.

    One standard error of the steering rows' own mean is added, or the bound would be outside in half of all runs that
    come up to it.
    """
    return (rise.bound(num_documents) + rise.spread / math.sqrt(rise.num_documents)) / budget


def put_scale(
    trainable: Mapping[str, Tensor],
    learnt: Mapping[str, Tensor],
    origins: Mapping[str, Tensor | float],
    scale: float,
    stored: torch.dtype | None = None,
) -> None:
    """Set parameters to origin + scale x (learnt - origin), and those without an origin to what was learnt.

    Scale 0 and 1 are exact. With `stored`, values are rounded to the type that the checkpoint will hold them in, so
    that what is measured is what is shipped.
    """
    with torch.no_grad():
        for name, parameter in trainable.items():
            value, origin = learnt[name], origins.get(name)
            if origin is not None and scale == 0:
                value = origin if isinstance(origin, Tensor) else torch.full_like(value, origin)
            elif origin is not None and scale != 1:
                value = origin + scale * (value - origin)
            parameter.copy_(value if stored is None else value.to(stored))


def adapted_weight(weight: float, used: float) -> float:
    """The weight of general rows after a measurement: more the further the bound is above the aim, less below it.

    Args:
        weight: The weight so far.
        used: The share of the budget that the bound takes.
    """
    doublings = _RESPONSE * (used - _AIM)
    weight *= 2 ** min(max(doublings, _MOST_LOOSER), _MOST_TIGHTER)
    return min(max(weight, _SMALLEST), _LARGEST)


def tightened_weight(weight: float, kl: float, allowed: float) -> float:
    """The weight of general rows after a step: doubled where it moved the model far beyond what is allowed.

    On text that the base wrote, loss rises by the KL to the base; on other text by less, as a rule. What a step of a
    short run does wrong in one measurement's time is not made good in the rest.

    Args:
        weight: The weight so far.
        kl: Of this step's general rows to the base, nats a token.
        allowed: How much general loss may rise, nats a token.
    """
    return min(2 * weight, _LARGEST) if kl > _FAR * allowed else weight


def is_better(new: Measurement, best: Measurement | None, budget: float | None, base: float | None) -> bool:
    """Whether `new` is the checkpoint to ship so far: the lowest domain loss inside the budget.

    Where what was learnt can be scaled, that is what is foreseen once it is scaled into the budget. Without a budget
    the latest is the one. The measurement of step 0 is inside where the model starts as the base, so there is always
    one to ship, even if it has gained nothing. Where it does not, the one with the smallest rise is kept until one is
    inside.

    Args:
        new: A measurement.
        best: Of the checkpoint to ship so far, if there is one.
        budget: How much general loss may rise, as a share.
        base: The base's domain loss, nats a token; None: what was learnt cannot be scaled.
    """
    if best is None or budget is None:
        return True
    # Written so that NaN is outside: no comparison with it holds.
    if base is not None:
        return scaled_loss(new, budget, base) < scaled_loss(best, budget, base)
    inside = is_inside(new, budget)
    if is_inside(best, budget):
        return inside and new.domain < best.domain
    return inside or (new.rise or 0.0) < (best.rise or 0.0)


def scaled_loss(measured: Measurement, budget: float, base: float) -> float:
    """The domain loss that is foreseen, nats a token, once what was learnt is scaled into the budget.

    What is gained falls with the scale in proportion at most: half of it left 0.6 of the gain on the tiny base and
    0.67 on SmolLM2 (docs/log.md).
    """
    if measured.budget_used is not None:
        scale = scale_inside(measured.budget_used)
    else:
        scale = 1.0 if is_inside(measured, budget) else 0.0
    return base + scale * (measured.domain - base)


def is_inside(measured: Measurement, budget: float) -> bool:
    """Whether a measurement is inside the budget, by the foreseen bound where there is one."""
    if measured.budget_used is not None:
        return measured.budget_used <= 1
    return measured.rise is None or measured.rise <= budget
