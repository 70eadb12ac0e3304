"""The five drawings: the stack, the frontier, where each method ended, how training went, rates with intervals.

In: records. Out: a `Drawing`: SVG as matplotlib saves it, in one size for wide and narrow pages, on no ground of its
own; the page turns its lightness round in the dark scheme. Matplotlib is imported inside: it costs a second.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blockexpand.records.comparison import ArmResult, Comparison
from blockexpand.records.plan import Plan, StackEntry
from blockexpand.records.run import Measurement
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS, Method, methods_of
from blockexpand.reporting.sources import Found, Run
from blockexpand.reporting.tables import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, OLD = "#1c2128", "#5d6672", "#c9d0d8"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#997700", "#117788", "#882255")
"""Okabe and Ito's blue, vermilion and green, and four of Paul Tol's that stay apart from them; all reach 3:1 on white.
Every series has a marker of its own besides."""
REFERENCE = "#727a84"
assert len(SERIES) == NUM_COLOURS, "as many colours as methods.py counts"

_WIDTH = 520
"""Of a drawing, in CSS pixels: its words can be read on a phone, where it is 358 wide."""
_MOST_DRAWN_SINGLY = 40
_BOX = "round,pad=0,rounding_size=0.1"
_SMOOTHED_OVER = 1 / 25
"""Share of a run's steps that one point of a training loss is the mean of."""
_NUM_MARKERS = 8
_FAR, _LINEAR = 5, 2
"""From so many budgets on the axis of forgetting is logarithmic; it is linear up to so many."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished drawing."""

    name: str
    """Its file's name, without the suffix."""
    title: str
    caption: str
    alt: str
    """What it shows, in words."""
    svg: str


def _drawn(name: str, title: str, caption: str, alt: str, figure: Figure) -> Drawing:
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same drawing gives the same bytes
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(name=name, title=title, caption=caption, alt=alt, svg=stream.getvalue())


def _figure(height: float, num_panels: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # without pyplot: no window, no state shared between calls

    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    panels = list(figure.subplots(num_panels, 1, squeeze=False, **kwargs).flatten())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelsize=11)
        axes.grid(color="#dde1e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.label.set_size(12)
        axes.yaxis.label.set_size(12)
    return figure, panels


def colour_of(number: int) -> str:
    """The colour of a method; -1 is the references' grey."""
    return REFERENCE if number < 0 else SERIES[number % NUM_COLOURS]


def _row_name(name: str) -> str:
    return textwrap.fill(name.replace("$", r"\$"), 26, max_lines=2, placeholder="\u2026")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, names), default=0) > 24 else 2
    labels = [textwrap.shorten(name, 56, placeholder="\u2026").replace("$", r"\$") for name in names]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=11)


def _legend_height(labels: Sequence[str]) -> int:
    return 20 * (len(labels) if max(map(len, labels), default=0) > 24 else -(-len(labels) // 2))


def _show_budget(axes: Axes, percents: Iterable[float], budget: float | None, on: str) -> None:
    """An axis of percents: its zero, its budget; logarithmic where a reference forgot many times what is allowed."""
    line, scale = (axes.axvline, axes.set_xscale) if on == "x" else (axes.axhline, axes.set_yscale)
    line(0, color=MUTED, linewidth=0.8)
    if budget is None:
        return
    line(100 * budget, color=INK, linestyle=(0, (5, 3)), linewidth=1.4, label=f"the budget, {formats.budget(budget)}")
    percents = [0.0, 100 * budget, *percents]
    low, high = min(percents), max(percents)
    if max(-low, high) > _FAR * 100 * budget:
        scale("symlog", linthresh=_LINEAR * 100 * budget)
        axis = axes.xaxis if on == "x" else axes.yaxis
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        limits = axes.set_xlim if on == "x" else axes.set_ylim
        limits(1.4 * low if low < -100 * budget else low - 40 * budget, 1.5 * high)


# --- the stack -------------------------------------------------------------------------------------------


def draw_stack(plan: Plan, name: str = "stack") -> Drawing:
    """A column of blocks, new ones among old ones; long runs of old blocks are one row."""
    from matplotlib.patches import FancyBboxPatch

    rows = _stack_rows(plan)
    figure, (axes,) = _figure((len(rows) + 2) * 19)
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.9, len(rows) + 0.9)
    for at, row in enumerate(rows):
        first, last = row[0], row[-1]
        colour = OLD if first.new is None else SERIES[0]
        axes.add_patch(
            FancyBboxPatch((1.6, at + 0.1), 3, 0.8, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec="none")
        )
        old = f"old {first.old}" if first is last else f"old {first.old} to {last.old}"
        words, ink = (old, INK) if first.new is None else ("new", "white")
        axes.text(3.1, at + 0.46, words, ha="center", va="center", color=ink, fontsize=11)
        positions = str(first.position) if first is last else f"{first.position}\u2013{last.position}"
        axes.text(1.4, at + 0.46, positions, ha="right", va="center", color=MUTED, fontsize=10)
        if first.new is not None:
            axes.text(4.8, at + 0.46, f"copy of old {first.new.donor}", va="center", color=INK, fontsize=11)
    for at, words in ((-0.5, "embeddings"), (len(rows) + 0.4, "output head")):
        axes.text(3.1, at, words, ha="center", va="center", color=MUTED, fontsize=11)
    start = (
        "A new block begins with zeros in " + " and ".join(plan.silent_words) + ": it adds exactly nothing."
        if plan.init == "identity"
        else f"New blocks were started with init {plan.init}, which is no identity."
    )
    new = ", ".join(str(block.position) for block in plan.new_blocks)
    return _drawn(
        name,
        f"The stack: {plan.base.num_blocks} old blocks and {len(plan.new_blocks)} new ones",
        f"Data flows upwards. Placement: {plan.placement.words}. {start} Only the new blocks train.",
        f"A column of {plan.num_blocks} blocks; new ones at {new}.",
        figure,
    )


def _stack_rows(plan: Plan) -> list[list[StackEntry]]:
    """What each row stands for, from the bottom: one block, or a run of old ones."""
    rows: list[list[StackEntry]] = []
    for entry in plan.stack:
        joins = len(plan.stack) > _MOST_DRAWN_SINGLY and rows and entry.new is None and rows[-1][-1].new is None
        if joins:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows


# --- a comparison ----------------------------------------------------------------------------------------


def trades(comparison: Comparison, points: Iterable[Measurement]) -> np.ndarray:
    """[points, 2]: forgetting in percent, gain in nats per token, both on the steering sample; empty without a base."""
    # Not every arm starts as the base: one whose general loss had not risen at step 0 did.
    base = next((m for trial in comparison.trials for m in trial.curve if m.step == 0 and not m.rise), None)
    if base is None or base.general is None:
        return np.empty((0, 2))
    pairs = [(100 * (p.general / base.general - 1), base.domain - p.domain) for p in points if p.general is not None]
    return np.array(pairs).reshape(-1, 2)


def draw_frontier(comparison: Comparison) -> Drawing:
    """Every measured checkpoint faint, each method's best trades joined, the chosen ones large, the budget."""
    methods = methods_of(comparison.recipe)
    budget = comparison.recipe.retention.forgetting_budget
    figure, (axes,) = _figure(380 + _legend_height([m.name for m in methods.values()]))
    percents, told = [0.0], []
    for arm in comparison.arms:
        method, colour = methods[arm.name], colour_of(methods[arm.name].colour)
        curve = [m for trial in comparison.trials if trial.arm == arm.name for m in trial.curve if m.step > 0]
        faint, front = trades(comparison, curve), trades(comparison, arm.frontier)
        chosen = trades(comparison, [trial.steering for trial in arm.trials])
        axes.plot(*faint.T, method.marker, color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
        style = (0, (2, 1.5)) if arm.unrestricted else "-"
        axes.plot(*front.T, color=colour, linestyle=style, marker=method.marker, markersize=5, label=method.name)
        axes.plot(
            *chosen.T, method.marker, color=colour, markersize=11, markeredgecolor=INK, markeredgewidth=1.4, zorder=5
        )
        percents += [*faint[:, 0], *chosen[:, 0]]
        told += [f"{method.name} {formats.difference(t[1])} at {formats.rise(t[0] / 100)}" for t in chosen[:1]]
    axes.plot([0], [0], marker="+", color=INK, markersize=12, markeredgewidth=2, linestyle="none", label="the base")
    _show_budget(axes, percents, budget, "x")
    axes.set_xlabel("forgetting (% of the general loss)")
    axes.set_ylabel("gain (nats per token)")
    _legend(figure, axes)
    caption = (
        "Up is more learnt, left is less forgotten. Faint: every measured checkpoint; joined: those that no other one "
        "of the method beats in both; large: those chosen. On the steering sample, which is not the table's text."
    )
    alt = "Gain against forgetting. Chosen: " + "; ".join(told) + "."
    return _drawn("frontier", "What each method can reach", caption, alt, figure)


def draw_outcome(comparison: Comparison) -> Drawing:
    """Gain and forgetting of every method on the test documents, with their intervals."""
    methods = methods_of(comparison.recipe)
    figure, (gain, forgetting) = _figure(2 * (70 + 30 * len(methods)), 2)
    ends = []
    for row, arm in enumerate(comparison.arms):
        method = methods[arm.name]
        for axes, one, scale in ((gain, arm.gain, 1.0), (forgetting, arm.forgetting, 100.0)):
            axes.plot([one.low * scale, one.high * scale], [row, row], color=colour_of(method.colour), linewidth=3)
            axes.plot([one.mean * scale], [row], method.marker, color=colour_of(method.colour), markersize=8)
        ends += [100 * arm.forgetting.low, 100 * arm.forgetting.high]
    for axes in (gain, forgetting):
        axes.set_yticks(range(len(methods)), [_row_name(methods[arm.name].name) for arm in comparison.arms])
        axes.tick_params(axis="y", colors=INK, length=0)
        axes.set_ylim(len(methods) - 0.5, -0.5)
    gain.axvline(0, color=MUTED, linewidth=0.8)
    gain.set_xlabel("gain (nats per token)")
    _show_budget(forgetting, ends, comparison.recipe.retention.forgetting_budget, "x")
    forgetting.set_xlabel("forgetting (% of the general loss; dashed: the budget)")
    told = [
        f"{methods[a.name].name}: gain {formats.difference(a.gain.mean)}, forgetting {formats.rise(a.forgetting.mean)}"
        for a in comparison.arms
    ]
    caption = "On the test documents, with 95 % intervals: the figures of the table."
    return _drawn("outcome", "Where each method ended", caption, "; ".join(told) + ".", figure)


# --- how training went -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run's way: what was measured, and its training loss."""

    name: str
    colour: int
    marker: str
    curve: tuple[Measurement, ...]
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    """Of the domain's rows of each step, before it learns from them; drawn where nothing was measured."""


def courses_of(comparison: Comparison) -> list[Course]:
    """The chosen runs of a comparison."""
    methods = methods_of(comparison.recipe)
    return [_compared(methods[arm.name], arm, number) for arm in comparison.arms for number in range(len(arm.trials))]


def _compared(method: Method, arm: ArmResult, number: int) -> Course:
    name = method.name if number == 0 else ""
    curve = arm.trials[number].curve
    return Course(name=name, colour=method.colour, marker=method.marker, curve=curve, steps=(), losses=())


def course_of(found: Found[Run], number: int) -> Course:
    """A run that was given on its own."""
    names = {"step", "domain", "general", "rise"}
    measured = [row for row in found.value.metrics if row.get("kind") == "measure"]
    rows = [row for row in found.value.metrics if row.get("kind") == "train" and row.get("domain_loss") is not None]
    return Course(
        name=found.label,
        colour=number % NUM_COLOURS,
        marker=MARKERS[number % len(MARKERS)],
        curve=tuple(Measurement(**{key: row[key] for key in names}) for row in measured),
        steps=tuple(float(row["step"]) for row in rows),
        losses=tuple(float(row["domain_loss"]) for row in rows),
    )


def draw_courses(courses: Sequence[Course], budget: float | None) -> Drawing | None:
    """Domain loss and forgetting on the steering sample over the steps; without such measurements, training losses."""
    courses = [one for one in courses if len(one.curve) > 1 or len(one.losses) > 1]
    if not courses:
        return None
    rises = [100 * m.rise for one in courses for m in one.curve if m.rise is not None]
    labels = [one.name for one in courses if one.name]
    figure, panels = _figure((460 if rises else 250) + _legend_height(labels), 2 if rises else 1, sharex=True)
    for one in courses:
        style: dict[str, Any] = {
            "color": colour_of(one.colour),
            "marker": one.marker,
            "markersize": 5,
            "linewidth": 1.6,
        }
        if len(one.curve) > 1:
            points = np.array([(m.step, m.domain) for m in one.curve], dtype=float)
        else:
            width = max(1, round(len(one.losses) * _SMOOTHED_OVER))
            smooth = np.convolve(one.losses, np.ones(width) / width, mode="valid")
            points = np.stack([np.array(one.steps)[width - 1 :], smooth], axis=1)
        every = max(1, len(points) // _NUM_MARKERS)
        panels[0].plot(*points.T, **style, markevery=every, label=one.name or None)
        risen = np.array([(m.step, 100 * m.rise) for m in one.curve if m.rise is not None], dtype=float).reshape(-1, 2)
        if rises:
            panels[1].plot(*risen.T, **style, markevery=every)
    panels[0].set_ylabel("domain loss (nats per token)")
    if rises:
        _show_budget(panels[1], rises, budget, "y")
        panels[1].set_ylabel("forgetting (%)")
    panels[-1].set_xlabel("step")
    panels[-1].locator_params(axis="x", integer=True)
    _legend(figure, panels[0])
    caption = (
        "On the steering sample, measured while training. Below: the rise of general loss; dashed: the budget."
        if rises
        else "Where nothing was measured on the way: the training loss, smoothed."
    )
    alt = "Domain loss over the steps: " + ", ".join(labels) + "."
    return _drawn("course", "How training went", caption, alt, figure)


# --- rates -----------------------------------------------------------------------------------------------


def draw_rates(name: str, title: str, caption: str, rows: Sequence[tuple[str, Spread]], middle: bool) -> Drawing | None:
    """Shares with their intervals, a row each; `middle` draws the line at one half."""
    if not rows:
        return None
    figure, (axes,) = _figure(70 + 30 * len(rows))
    if middle:
        axes.axvline(50, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for row, (_, rate) in enumerate(rows):
        axes.plot([100 * rate.low, 100 * rate.high], [row, row], color=SERIES[0], linewidth=3)
        axes.plot([100 * rate.value], [row], "o", color=SERIES[0], markersize=8)
    axes.set_yticks(range(len(rows)), [_row_name(label) for label, _ in rows])
    axes.tick_params(axis="y", colors=INK, length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("%")
    alt = "; ".join(f"{label}: {formats.share(rate.value)}" for label, rate in rows)
    return _drawn(name, title, caption, alt + ".", figure)
