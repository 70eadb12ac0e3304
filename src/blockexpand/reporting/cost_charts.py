"""Gain against what it cost: CPU seconds, trained parameters, peak memory, each with the methods no other one beats.

In: a finished comparison. Out: a figure. Unrestricted references are drawn and are on no front.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockexpand.comparison import ArmResult, Comparison
from blockexpand.reporting import formats
from blockexpand.reporting.methods import Method, methods_of
from blockexpand.reporting.plotting import (
    MUTED,
    Figure,
    Words,
    colour_of,
    legend_height,
    make_figure,
    panels,
    show_legend,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One thing that learning costs."""

    title: str
    label: str
    of: Callable[[ArmResult], float | None]


def _cpu_seconds(arm: ArmResult) -> float | None:
    values = [t.cpu_seconds for t in arm.trials if t.cpu_seconds is not None]
    return float(np.mean(values)) if values else None


COSTS = (
    Cost(title="CPU time", label="CPU seconds of a run\u2019s steps", of=_cpu_seconds),
    Cost(
        title="Trained parameters",
        label="millions of parameters",
        of=lambda arm: arm.trials[0].num_trainable_parameters / 1e6,
    ),
    Cost(title="Peak memory", label="GB", of=lambda arm: max(t.peak_memory_bytes for t in arm.trials) / 1e9),
)


def front_of(arms: list[ArmResult], cost: Cost) -> list[ArmResult]:
    """The arms that no other one beats or equals in both gain and cost, the cheapest first."""
    priced = [(value, arm) for arm in arms if not arm.unrestricted and (value := cost.of(arm)) is not None]
    kept: list[ArmResult] = []
    for _, arm in sorted(priced, key=lambda pair: (pair[0], -pair[1].gain.mean)):
        if not kept or arm.gain.mean > kept[-1].gain.mean:
            kept.append(arm)
    return kept


def gain_cost_figure(comparison: Comparison) -> Figure:
    """Gain on the test documents against each cost, with intervals and fronts."""
    methods = methods_of(comparison.recipe)
    costs = [c for c in COSTS if any(c.of(arm) is not None for arm in comparison.arms)]
    told = [
        f"{cost.title}: " + ", ".join(methods[arm.name].name for arm in front_of(list(comparison.arms), cost))
        for cost in costs
    ]
    words = Words(
        name="gain-cost",
        title="What a gain costs",
        caption="Up is more learnt, left is cheaper; bars are 95 % intervals of the gain. The line joins the methods "
        "that no other one beats in both. References without limits are on no line.",
        alt="Gain against cost. On the fronts, the cheapest first: "
        + "; ".join(told)
        + ". Gains: "
        + ", ".join(f"{methods[arm.name].name} {formats.difference(arm.gain.mean)}" for arm in comparison.arms)
        + ".",
    )
    heights = legend_height([m.name for m in methods.values()])
    draw = functools.partial(_draw, comparison, methods, costs)
    return make_figure(words, draw, (300 + heights[0], 250 * len(costs) + heights[1]))


def _draw(comparison: Comparison, methods: dict[str, Method], costs: list[Cost], canvas: Canvas, narrow: bool) -> None:
    grid = panels(canvas, len(costs), narrow)
    for axes, cost in zip(grid, costs, strict=True):
        front = front_of(list(comparison.arms), cost)
        axes.plot([cost.of(arm) or 0.0 for arm in front], [a.gain.mean for a in front], color=MUTED, linewidth=1.4)
        for arm in comparison.arms:
            value, method = cost.of(arm), methods[arm.name]
            if value is None:
                continue
            colour = colour_of(method.colour)
            axes.plot([value, value], [arm.gain.low, arm.gain.high], color=colour, linewidth=1.2, alpha=0.7)
            axes.plot([value], [arm.gain.mean], method.marker, color=colour, markersize=8, label=method.name)
        axes.set_title(cost.title)
        axes.set_xlabel(cost.label)
    grid[0].set_ylabel("gain (nats per token)")
    show_legend(canvas, grid[0], narrow)
