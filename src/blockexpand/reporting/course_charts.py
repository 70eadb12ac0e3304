"""The figures of how training went: the steering sample as it was measured, and the training loss.

In: a comparison, or runs that were given on their own, and the lines they wrote down as they went. Out:
figures; None where there is nothing to draw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blockexpand.comparison import ArmResult, Comparison, Trial
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS, Method, methods_of
from blockexpand.reporting.plotting import (
    INK,
    Figure,
    Words,
    colour_of,
    legend_height,
    make_figure,
    panels,
    show_legend,
)
from blockexpand.reporting.scales import percent_scale, show_percents
from blockexpand.reporting.sources import Found, Metrics, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_NUM_MARKERS = 8
"""About so many markers along a line, enough to tell it by without colour."""
_SMOOTHED_OVER = 1 / 25
"""Share of a run's steps that one point of a training loss is the mean of."""


# --- the steering sample -----------------------------------------------------------------------------


def curves_figure(comparison: Comparison) -> Figure | None:
    """Domain loss and forgetting while each method trained, at its chosen learning rate."""
    measured = [arm for arm in comparison.arms if any(len(trial.curve) > 1 for trial in arm.trials)]
    if not measured:
        return None
    methods = methods_of(comparison.recipe)
    several = ", one line a seed" if len(comparison.recipe.seeds) > 1 else ""
    words = Words(
        name="curves",
        title="How each method got there",
        caption=f"The steering sample, measured while training, at the chosen learning rate{several}. The large mark "
        "is the checkpoint that was kept: with a budget, the one of lowest domain loss inside it; without, the last.",
        alt="Domain loss and forgetting over the steps of training. Domain loss: "
        + "; ".join(f"{methods[arm.name].name} {_from_to(arm)}" for arm in measured)
        + ".",
    )
    heights = legend_height([m.name for m in methods.values()])
    draw = functools.partial(_draw_curves, comparison, methods)
    return make_figure(words, draw, (320 + heights[0], 560 + heights[1]))


def _from_to(arm: ArmResult) -> str:
    curve = next(trial.curve for trial in arm.trials if len(trial.curve) > 1)
    return f"from {formats.loss(curve[0].domain)} to {formats.loss(curve[-1].domain)}"


def _draw_curves(comparison: Comparison, methods: dict[str, Method], canvas: Canvas, narrow: bool) -> None:
    domain, forgetting = panels(canvas, 2, narrow)
    for arm in comparison.arms:
        for number, trial in enumerate(arm.trials):
            _draw_curve(domain, forgetting, trial, methods[arm.name], labelled=number == 0)
    rises = [100 * m.rise for arm in comparison.arms for t in arm.trials for m in t.curve if m.rise is not None]
    show_percents(forgetting, percent_scale(rises, comparison.recipe.retention.forgetting_budget), "y")
    domain.set_title("Domain loss (nats per token)")
    forgetting.set_title("Forgetting (% of the general loss)")
    for axes in (domain, forgetting):
        _steps(axes)
    show_legend(canvas, domain, narrow)


def _draw_curve(domain: Axes, forgetting: Axes, trial: Trial, method: Method, labelled: bool) -> None:
    colour = colour_of(method.colour)
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "marker": method.marker, "markeredgewidth": 0}
    mark: dict[str, Any] = {"color": colour, "marker": method.marker, "markersize": 10, "markeredgecolor": INK}
    of = {domain: lambda m: m.domain, forgetting: lambda m: None if m.rise is None else 100 * m.rise}
    for axes, value in of.items():
        points = [(m.step, value(m)) for m in trial.curve if value(m) is not None]
        every = max(1, len(points) // _NUM_MARKERS)
        label = method.name if labelled else None
        axes.plot(*np.array(points).reshape(-1, 2).T, **style, markersize=5, markevery=every, label=label)
        if value(trial.steering) is not None:
            axes.plot([trial.steering.step], [value(trial.steering)], **mark, zorder=5)


# --- the training loss -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Line:
    label: str
    colour: int
    marker: str
    steps: np.ndarray
    losses: np.ndarray


def compared_losses_figure(comparison: Comparison, runs: dict[str, Run]) -> Figure | None:
    """The training loss on domain text of each method's first chosen run."""
    methods = methods_of(comparison.recipe)
    lines = []
    for arm in comparison.arms:
        method, trial = methods[arm.name], arm.trials[0]
        if trial.run in runs:
            lines += _lines(runs[trial.run].metrics, method.name, method.colour, method.marker)
    caption = (
        "Cross-entropy on the domain rows of each step, before it learns from them, smoothed; first seed, chosen "
        "learning rate."
    )
    return _losses_figure("training", caption, lines)


def runs_figure(runs: Sequence[Found[Run]]) -> Figure | None:
    """The training loss of runs that were given on their own."""
    lines = []
    for number, found in enumerate(runs):
        marker = MARKERS[number % len(MARKERS)]
        lines += _lines(found.value.metrics, found.label, number % NUM_COLOURS, marker)
    return _losses_figure("runs", "Cross-entropy of each step, before it learns, smoothed.", lines)


def _lines(metrics: Metrics, label: str, colour: int, marker: str) -> list[_Line]:
    rows = [row for row in metrics if row.get("kind") == "train" and row.get("domain_loss") is not None]
    if len(rows) < 2:
        return []
    losses = np.array([row["domain_loss"] for row in rows], dtype=float)
    width = max(1, round(len(losses) * _SMOOTHED_OVER))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    steps = np.array([row["step"] for row in rows], dtype=float)[width - 1 :]
    return [_Line(label=label, colour=colour, marker=marker, steps=steps, losses=smooth)]


def _losses_figure(name: str, caption: str, lines: Sequence[_Line]) -> Figure | None:
    if not lines:
        return None
    told = [f"{one.label} from {formats.loss(one.losses[0])} to {formats.loss(one.losses[-1])}" for one in lines]
    title = "Loss while training"
    words = Words(name=name, title=title, caption=caption, alt=f"{title}, by step. {'; '.join(told)}.")
    heights = legend_height([one.label for one in lines])
    return make_figure(words, functools.partial(_draw_losses, lines), (280 + heights[0], 260 + heights[1]))


def _draw_losses(lines: Sequence[_Line], canvas: Canvas, narrow: bool) -> None:
    axes = canvas.subplots()
    for one in lines:
        axes.plot(
            one.steps,
            one.losses,
            color=colour_of(one.colour),
            linewidth=1.6,
            label=one.label,
            marker=one.marker,
            markersize=5,
            markeredgewidth=0,
            markevery=max(1, len(one.steps) // _NUM_MARKERS),
        )
    _steps(axes)
    axes.set_ylabel("nats per token")
    show_legend(canvas, axes, narrow)


def _steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))  # there is no step 2.5
