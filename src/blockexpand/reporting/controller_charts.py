"""The figure of how a run kept to its budget: what it measured, and how it weighed general text because of it.

In: runs with a forgetting budget, and the lines they wrote down. Out: a figure; None where no run had a budget.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockexpand.comparison import Comparison
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS, methods_of
from blockexpand.reporting.plotting import Figure, Words, colour_of, legend_height, make_figure, panels, show_legend
from blockexpand.reporting.scales import percent_scale, show_percents
from blockexpand.reporting.sources import Found, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """What the controller of one run saw and set, measurement by measurement."""

    label: str
    colour: int
    marker: str
    budget: float
    steps: tuple[int, ...]
    rises: tuple[float, ...]
    weights: tuple[float, ...]
    """Of general rows, from the measurement on; 1 at the start."""


def controller_figure(
    comparison: Comparison | None, compared: Mapping[str, Run], alone: Sequence[Found[Run]]
) -> Figure | None:
    """Forgetting and the weight of general text, by step.

    Of a comparison's methods, each method's first chosen run; otherwise of the runs given on their own.
    """
    traces = [trace for trace in _traces(comparison, compared, alone) if trace is not None]
    if not traces:
        return None
    told = "; ".join(
        f"{one.label}: at most {formats.signed(f'{100 * max(one.rises):+.2f}')} %, weight from {one.weights[0]:.2f} to "
        f"{one.weights[-1]:.2f}"
        for one in traces
    )
    words = Words(
        name="controller",
        title="How the budget was kept",
        caption="Forgetting on the steering sample, and the weight that general text had in the loss from there on: "
        "it rises when forgetting nears the budget, and falls when there is room.",
        alt=f"Forgetting while training, and the weight of general text. {told}.",
    )
    heights = legend_height([one.label for one in traces])
    return make_figure(words, functools.partial(_draw, traces), (320 + heights[0], 560 + heights[1]))


def _traces(
    comparison: Comparison | None, compared: Mapping[str, Run], alone: Sequence[Found[Run]]
) -> list[_Trace | None]:
    if comparison is None:
        return [
            _trace(found.value, found.label, n % NUM_COLOURS, MARKERS[n % len(MARKERS)])
            for n, found in enumerate(alone)
        ]
    methods = methods_of(comparison.recipe)
    return [
        _trace(compared[arm.trials[0].run], arm.name, methods[arm.name].colour, methods[arm.name].marker)
        for arm in comparison.arms
        if arm.trials[0].run in compared
    ]


def _trace(run: Run, label: str, colour: int, marker: str) -> _Trace | None:
    budget = run.record.settings.retention.forgetting_budget
    rows = [row for row in run.metrics if row.get("kind") == "measure" and row.get("rise") is not None]
    if budget is None or len(rows) < 2:
        return None
    return _Trace(
        label=label,
        colour=colour,
        marker=marker,
        budget=budget,
        steps=tuple(int(row["step"]) for row in rows),
        rises=tuple(float(row["rise"]) for row in rows),
        weights=tuple(float(row["general_weight"]) for row in rows),
    )


def _draw(traces: Sequence[_Trace], canvas: Canvas, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    forgetting, weight = panels(canvas, 2, narrow)
    for one in traces:
        style: dict[str, Any] = {
            "color": colour_of(one.colour),
            "linewidth": 1.6,
            "marker": one.marker,
            "markersize": 5,
        }
        every = max(1, len(one.steps) // 8)
        forgetting.plot(one.steps, [100 * rise for rise in one.rises], **style, markevery=every, label=one.label)
        weight.step(one.steps, one.weights, where="post", **style, markevery=every)
    # Runs with different budgets: the line is the tightest.
    budget = min(one.budget for one in traces)
    show_percents(forgetting, percent_scale([100 * rise for one in traces for rise in one.rises], budget), "y")
    forgetting.set_title("Forgetting (% of the general loss)")
    weight.set_title("Weight of general text")
    for axes in (forgetting, weight):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    show_legend(canvas, forgetting, narrow)
