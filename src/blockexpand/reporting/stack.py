"""The expanded stack drawn as a column: old blocks, new ones, whose copies they are, what starts at zero.

In: an expansion's record. Out: a figure. Long runs of old blocks are drawn as one, so that a model of eighty
blocks still fits on a page.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from blockexpand.comparison import BlockEffect
from blockexpand.records.expansion import ExpansionRecord
from blockexpand.records.plan import Plan, StackEntry
from blockexpand.reporting.plotting import GRID, INK, MUTED, PAPER, SERIES, Figure, Words, make_figure
from blockexpand.reporting.sources import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MOST_DRAWN_SINGLY = 40
_WIDTH, _ROW = 360, 25
_LEFT, _RIGHT = 0.9, 5.3
"""Edges of the column, in rows' heights."""


Effects = tuple[str, tuple[BlockEffect, ...]]
"""An arm's name, and what each of its new blocks does."""


def stack_figure(found: Found[ExpansionRecord], number: int, effects: Effects | None = None) -> Figure:
    """The stack of one expansion; with what its blocks do, where they are the ones that were looked at."""
    plan = found.value.plan
    moved = _moved(plan, effects)
    rows = _rows(plan)
    new = ", ".join(f"block {b.position} (copy of old {b.donor})" for b in plan.new_blocks)
    words = Words(
        name="stack" if number == 0 else f"stack-{number + 1}",
        title=f"The stack: {plan.base.num_blocks} old blocks + {len(plan.new_blocks)} new = {plan.num_blocks}",
        caption=f"Data flow upwards. Placement: {plan.placement.words}. Each new block starts as a copy of the old "
        f"block at its arrow\u2019s tail{_start(plan)} Only the new blocks are trained."
        + (" Percentages: what a trained block adds to the hidden states of domain text." if moved else ""),
        alt=f"A column of {plan.num_blocks} blocks from the embeddings at the bottom to the output head at the top. "
        f"New: {new}. The other blocks are old and frozen.",
    )
    height = (len(rows) + 2.6) * _ROW
    return make_figure(words, functools.partial(_draw, rows, moved), (height, height), column=_WIDTH)


def _moved(plan: Plan, effects: Effects | None) -> dict[str, float]:
    """How far each new block has moved from an identity, by its id; empty when others were looked at."""
    blocks = () if effects is None else effects[1]
    if [(b.id, b.position) for b in blocks] != [(b.id, b.position) for b in plan.new_blocks]:
        return {}
    return {block.id: block.moved["domain"] for block in blocks}


def _start(plan: Plan) -> str:
    if plan.init != "identity":
        return f", started with init {plan.init}, which is no identity (an ablation)."
    return (
        f", with zeros in {_and(plan.silent_words)}: what it adds is exactly zero, so the deeper model begins as the "
        "very same function."
    )


def _and(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rows(plan: Plan) -> list[list[StackEntry]]:
    """What each row of the drawing stands for, from the bottom: one block, or a run of old ones."""
    stack = list(plan.stack)
    if len(stack) <= _MOST_DRAWN_SINGLY:
        return [[entry] for entry in stack]
    donors = {block.donor for block in plan.new_blocks}
    rows: list[list[StackEntry]] = []
    for entry in stack:
        # A donor keeps a row of its own: an arrow begins there.
        alone = entry.new is not None or entry.old in donors
        joins = rows and not alone and rows[-1][-1].new is None and rows[-1][-1].old not in donors
        if joins:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows


def _draw(rows: list[list[StackEntry]], moved: dict[str, float], canvas: Canvas, narrow: bool) -> None:
    del narrow
    axes = canvas.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH / _ROW)
    axes.set_ylim(-1.3, len(rows) + 1.3)
    heights = {entry.old: at for at, row in enumerate(rows) for entry in row if entry.old is not None}
    for at, row in enumerate(rows):
        _draw_row(axes, at, row)
        new = row[0].new
        if new is not None:
            _draw_arrow(axes, heights[new.donor], at)
            label = f"copy of old {new.donor}"
            if new.id in moved:
                label += f", adds {moved[new.id]:.0%}"
            axes.text(_RIGHT + 1.5, at + 0.5, label, va="center", color=INK, fontsize=11)
    middle = (_LEFT + _RIGHT) / 2
    axes.text(middle, -0.55, "embeddings", ha="center", va="center", color=MUTED)
    axes.text(middle, len(rows) + 0.55, "output head", ha="center", va="center", color=MUTED)


def _draw_row(axes: Axes, at: int, row: list[StackEntry]) -> None:
    from matplotlib.patches import FancyBboxPatch

    first, last = row[0], row[-1]
    is_new = first.new is not None
    axes.add_patch(
        FancyBboxPatch(
            (_LEFT, at + 0.1),
            _RIGHT - _LEFT,
            0.8,
            boxstyle="round,pad=0,rounding_size=0.15",
            facecolor=SERIES[0] if is_new else GRID,
            edgecolor="none",
        )
    )
    label = "new" if is_new else f"old {first.old}" if first is last else f"old {first.old} to {last.old}"
    axes.text(
        (_LEFT + _RIGHT) / 2,
        at + 0.48,
        label,
        ha="center",
        va="center",
        fontsize=11.5,
        color=PAPER if is_new else INK,
        fontweight="bold" if is_new else "normal",
    )
    positions = str(first.position) if first is last else f"{first.position}\u2013{last.position}"
    axes.text(_LEFT - 0.25, at + 0.48, positions, ha="right", va="center", color=MUTED, fontsize=10.5)


def _draw_arrow(axes: Axes, donor: int, at: int) -> None:
    from matplotlib.patches import FancyArrowPatch

    distance = abs(at - donor)
    # The further the donor, the flatter the bow, so that it stays within the drawing.
    bow = 0.9 if distance <= 1 else min(0.6, 1.6 / distance)
    axes.add_patch(
        FancyArrowPatch(
            (_RIGHT + 0.1, donor + 0.5),
            (_RIGHT + 0.1, at + 0.5),
            arrowstyle="-|>",
            mutation_scale=9,
            connectionstyle=f"arc3,rad={bow if at > donor else -bow}",
            color=MUTED,
            linewidth=1.2,
            shrinkA=0,
            shrinkB=0,
        )
    )
