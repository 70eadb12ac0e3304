"""How much general text misses each block, as bars, with the places where a guided plan grows.

In: a plan with scores. Out: a figure. The scale is logarithmic where every score is above zero: a first block may
count fifty times another. Chosen bars differ in colour, darkness and hatching, and each is marked in words.
"""

from __future__ import annotations

import functools
import textwrap
from typing import TYPE_CHECKING

from blockexpand.expansion import MEASURE_WORDS, Plan
from blockexpand.reporting.plotting import (
    GRID,
    INK,
    MUTED,
    SERIES,
    Figure,
    Words,
    legend_height,
    make_figure,
    show_legend,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_UNITS = {"kl": "nats per token", "loss": "nats per token", "cosine": "1 - cosine"}
_LEGEND = ("old block", "old block with a new one on it")
_HEIGHT = 380
_MOST_LABELLED = 48
"""More numbers under the bars would run into each other."""


def guidance_figure(plan: Plan, number: int = 0) -> Figure:
    """The scores of a guided plan; `number` tells several of one page apart."""
    guidance = plan.guidance
    assert guidance is not None, "only a guided plan has scores to draw"
    places = [block.after for block in plan.new_blocks]
    figures = ", ".join(f"block {old} {harm:.3g}" for old, harm in enumerate(guidance.harms))
    chosen = ", ".join(map(str, places))
    measured = f"{MEASURE_WORDS[guidance.measure]} ({_UNITS[guidance.measure]})"
    words = Words(
        name="importance" if number == 0 else f"importance-{number + 1}",
        title="How much general text misses each old block",
        caption=f"{measured}; {guidance.num_tokens:,} tokens; the whole model\u2019s loss is "
        f"{guidance.base_loss:.3f}. New blocks stand on the marked ones, which are missed least.",
        alt=f"Bars, one for each old block: {figures}. New blocks after {chosen}.",
    )
    heights = [_HEIGHT + legend for legend in legend_height(_LEGEND)]
    return make_figure(words, functools.partial(_draw, plan), (heights[0], heights[1]))


def _draw(plan: Plan, canvas: Canvas, narrow: bool) -> None:
    guidance = plan.guidance
    assert guidance is not None, "only a guided plan has scores to draw"
    harms, places = guidance.harms, {block.after for block in plan.new_blocks}
    axes = canvas.subplots()
    if min(harms) > 0:
        axes.set_yscale("log")
        axes.set_ylim(min(harms) / 2, max(harms) * 2)
        axes.yaxis.set_major_formatter("{x:g}")
    kept = [old for old in range(len(harms)) if old not in places]
    axes.bar(kept, [harms[i] for i in kept], 0.72, color=GRID, edgecolor=MUTED, label=_LEGEND[0])
    axes.bar(
        sorted(places),
        [harms[i] for i in sorted(places)],
        0.72,
        color=SERIES[0],
        edgecolor=INK,
        hatch="//",
        label=_LEGEND[1],
    )
    for old in places:
        place = (old, max(harms[old], 0.0))
        axes.annotate("+1", place, (0, 4), textcoords="offset points", ha="center", color=INK, fontweight="bold")
    axes.set_xticks(range(0, len(harms), _stride(len(harms), narrow)))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("old block, 0 is the first")
    axes.set_title(_title(plan, narrow))
    axes.set_ylabel(f"{_UNITS[guidance.measure]}{' (logarithmic)' if min(harms) > 0 else ''}")
    show_legend(canvas, axes, narrow)


def _title(plan: Plan, narrow: bool) -> str:
    assert plan.guidance is not None, "only a guided plan has scores to draw"
    words = f"{plan.base.source.rstrip('/').rpartition('/')[2]}: {MEASURE_WORDS[plan.guidance.measure]}"
    return textwrap.fill(words, 40 if narrow else 110)


def _stride(num_blocks: int, narrow: bool) -> int:
    """Every how many blocks are numbered."""
    most = _MOST_LABELLED // 3 if narrow else _MOST_LABELLED
    return -(-num_blocks // most)
