"""The figures of what came of a comparison: frontiers, where each method ended, what it cost.

In: a finished comparison. Out: figures. Colour and marker of a method are the same in all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockexpand.comparison import ArmResult, Comparison
from blockexpand.comparison.results import Summary
from blockexpand.records.run import Measurement
from blockexpand.reporting import formats
from blockexpand.reporting.methods import Method, methods_of
from blockexpand.reporting.plotting import (
    INK,
    MUTED,
    PAPER,
    Figure,
    Words,
    colour_of,
    legend_height,
    make_figure,
    panels,
    row_name,
    show_legend,
)
from blockexpand.reporting.scales import forgetting_label, percent_scale, show_percents

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


# --- gain against forgetting -------------------------------------------------------------------------


def trades(comparison: Comparison, points: Iterable[Measurement]) -> np.ndarray:
    """[points, 2]: forgetting in percent, gain in nats per token, both on the steering sample; empty without a base."""
    # Not every arm starts as the base: one whose general loss had not risen at step 0 did.
    base = next((m for trial in comparison.trials for m in trial.curve if m.step == 0 and not m.rise), None)
    if base is None or base.general is None:
        return np.empty((0, 2))
    pairs = [(100 * (p.general / base.general - 1), base.domain - p.domain) for p in points if p.general is not None]
    return np.array(pairs).reshape(-1, 2)


def _chosen(comparison: Comparison, arm: ArmResult) -> np.ndarray:
    return trades(comparison, [trial.steering for trial in arm.trials])


def frontier_figure(comparison: Comparison) -> Figure:
    """Every measured checkpoint faint, each method's best trades strong, the budget, the chosen ones marked."""
    methods = methods_of(comparison.recipe)
    ends = [
        f"{methods[arm.name].name} {formats.difference(float(trade[1]))} nats at {formats.rise(trade[0] / 100)}"
        for arm in comparison.arms
        for trade in _chosen(comparison, arm)[:1]
    ]
    words = Words(
        name="frontiers",
        title="What each method can reach",
        caption="Up is more learnt, left is less forgotten. Each faint mark is a checkpoint of any run of a method, at "
        "any learning rate; the line joins those that no other one of that method beats in both. The large marks are "
        "the checkpoints that were chosen. All on the steering sample, which is not the text of the table.",
        alt=f"Gain against forgetting, a line for each of {len(methods)} methods. Chosen checkpoints: "
        + "; ".join(ends)
        + ".",
    )
    heights = legend_height([m.name for m in methods.values()])
    draw = functools.partial(_draw_frontiers, comparison, methods)
    return make_figure(words, draw, (440 + heights[0], 360 + heights[1]))


def _draw_frontiers(comparison: Comparison, methods: dict[str, Method], canvas: Canvas, narrow: bool) -> None:
    axes = canvas.subplots()
    everything = [np.zeros((1, 2))]
    for arm in comparison.arms:
        method = methods[arm.name]
        colour = colour_of(method.colour)
        curve = [m for trial in comparison.trials if trial.arm == arm.name for m in trial.curve if m.step > 0]
        faint, front, chosen = trades(comparison, curve), trades(comparison, arm.frontier), _chosen(comparison, arm)
        axes.plot(*faint.T, method.marker, color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
        axes.plot(
            *front.T,
            color=colour,
            linestyle=(0, (2, 1.5)) if arm.unrestricted else "-",
            linewidth=2,
            marker=method.marker,
            markersize=5,
            markeredgewidth=0,
            label=method.name,
        )
        axes.plot(
            *chosen.T, method.marker, color=colour, markersize=12, markeredgecolor=INK, markeredgewidth=1.6, zorder=5
        )
        everything += [faint, chosen]
    axes.plot([0], [0], marker="+", color=INK, markersize=12, markeredgewidth=2, zorder=6)
    axes.annotate("base", (0, 0), textcoords="offset points", xytext=(7, -12), ha="left", color=INK)
    percents = np.concatenate(everything)[:, 0]
    scale = percent_scale(percents, comparison.recipe.retention.forgetting_budget, narrow)
    show_percents(axes, scale, "x")
    axes.set_xlabel(forgetting_label(scale))
    axes.set_ylabel("gain (nats per token)")
    show_legend(canvas, axes, narrow)


def outcome_figure(comparison: Comparison) -> Figure:
    """Gain and forgetting of every method on the test documents, with their intervals."""
    methods = methods_of(comparison.recipe)
    told = [
        f"{methods[arm.name].name}: gain {formats.difference(arm.gain.mean)}, forgetting "
        f"{formats.rise(arm.forgetting.mean)}"
        for arm in comparison.arms
    ]
    words = Words(
        name="outcome",
        title="Where each method ended",
        caption="Gain and forgetting on the test documents, with 95 % intervals: the figures of the table.",
        alt="Gain and forgetting on the test documents. " + "; ".join(told) + ".",
    )
    height = 90 + 30 * len(methods)
    return make_figure(words, functools.partial(_draw_outcome, comparison, methods), (height, 2 * height + 20))


def _draw_outcome(comparison: Comparison, methods: dict[str, Method], canvas: Canvas, narrow: bool) -> None:
    gain, forgetting = panels(canvas, 2, narrow, share_y=True)
    names = [row_name(methods[arm.name].name, narrow) for arm in comparison.arms]
    for row, arm in enumerate(comparison.arms):
        _draw_interval(gain, row, arm.gain, methods[arm.name], 1.0)
        _draw_interval(forgetting, row, arm.forgetting, methods[arm.name], 100.0)
    for axes in (gain, forgetting):
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", colors=INK, length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
    gain.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    gain.set_xlabel("gain (nats per token)")
    ends = [100 * end for arm in comparison.arms for end in (arm.forgetting.low, arm.forgetting.high)]
    scale = percent_scale(ends, comparison.recipe.retention.forgetting_budget, narrow)
    show_percents(forgetting, scale, "x")
    forgetting.set_xlabel(forgetting_label(scale))


def _draw_interval(axes: Axes, row: int, figure: Summary, method: Method, scale: float) -> None:
    colour = colour_of(method.colour)
    ends = [figure.low * scale, figure.high * scale]
    axes.plot(ends, [row, row], color=colour, linewidth=3, solid_capstyle="butt", zorder=3)
    axes.plot(
        [figure.mean * scale],
        [row],
        marker=method.marker,
        color=colour,
        markersize=8,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=4,
    )


# --- cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Measure:
    title: str
    unit: str
    """Said in the alternative text."""
    of: Callable[[ArmResult], float]
    write: Callable[[float], str]


_COSTS = (
    _Measure(
        title="Trainable parameters",
        unit=" trainable parameters",
        of=lambda arm: arm.trials[0].num_trainable_parameters,
        write=formats.format_scaled,
    ),
    _Measure(
        title="Tokens per second",
        unit=" tokens per second",
        of=lambda arm: float(np.mean([t.tokens_per_second for t in arm.trials])),
        write=formats.rate,
    ),
    _Measure(
        title="Peak memory",
        unit=" of memory",
        of=lambda arm: max(t.peak_memory_bytes for t in arm.trials),
        write=formats.format_bytes,
    ),
    _Measure(
        title="Training time of a run",
        unit=" of training",
        of=lambda arm: float(np.mean([t.train_seconds for t in arm.trials])),
        write=formats.format_seconds,
    ),
)


def cost_figure(comparison: Comparison) -> Figure:
    """Bars: what trains, how fast, in how much memory, for how long."""
    methods = methods_of(comparison.recipe)
    told = [
        f"{methods[arm.name].name}: " + ", ".join(one.write(one.of(arm)) + one.unit for one in _COSTS)
        for arm in comparison.arms
    ]
    words = Words(
        name="cost",
        title="Size, speed, memory, time",
        caption="Means over the seeds at the chosen learning rate; of the peak memory, the largest. Tokens count "
        "domain and general text, and padding.",
        alt="; ".join(told) + ".",
    )
    height = 60 + 27 * len(methods)
    draw = functools.partial(_draw_costs, comparison.arms, methods)
    return make_figure(words, draw, (2 * height, 4 * height))


def _draw_costs(arms: tuple[ArmResult, ...], methods: dict[str, Method], canvas: Canvas, narrow: bool) -> None:
    grid = canvas.subplots(4 if narrow else 2, 1 if narrow else 2, squeeze=False).flatten()
    colours = [colour_of(methods[arm.name].colour) for arm in arms]
    for axes, measure in zip(grid, _COSTS, strict=True):
        values = [measure.of(arm) for arm in arms]
        bars = axes.barh(range(len(arms)), values, height=0.62, color=colours)
        axes.bar_label(bars, [measure.write(value) for value in values], padding=4, color=INK, fontsize=11)
        axes.set_title(measure.title)
        axes.set_yticks(range(len(arms)), [row_name(methods[arm.name].name, narrow) for arm in arms])
        axes.tick_params(axis="y", colors=INK, length=0)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(0, max(values) * (1.5 if narrow else 1.28) or 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)
