"""The figures of tasks learnt in a row: OP and BWT with their seeds, and the general loss on the way.

In: a `SequenceRecord`. Out: figures. Colour and marker of a method are the same in both.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from blockexpand.comparison.results import Summary
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS
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
from blockexpand.reporting.sequences import SequenceRecord, TaughtChain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# T = tasks.


def sequence_figures(record: SequenceRecord) -> list[Figure]:
    """Both figures."""
    return [_outcome_figure(record), _general_figure(record)]


def _outcome_figure(record: SequenceRecord) -> Figure:
    told = [
        f"{m.name}: OP {formats.share(m.op.mean)}, BWT {formats.points(m.bwt.mean)}" for m in record.methods
    ]  # fmt: skip
    seeds = "each seed as a small mark, " if record.num_seeds > 1 else ""
    words = Words(
        name="row-outcome",
        title="Known at the end, and changed since it was learnt",
        caption=f"OP is the mean score over all tasks after the last one, BWT the mean change of a task\u2019s score "
        f"since it was learnt. Bars are means, {seeds}lines the 95 % intervals of the table.",
        alt="OP and BWT of every method. " + "; ".join(told) + ".",
    )
    height = 80 + 34 * len(record.methods)
    return make_figure(words, functools.partial(_draw_outcome, record), (height, 2 * height + 20))


def _op(chain: TaughtChain) -> float:
    return float(np.mean(chain.matrix[-1]))


def _bwt(chain: TaughtChain) -> float:
    return float(np.mean(np.array(chain.matrix[-1]) - np.diagonal(np.array(chain.matrix))))


def _draw_outcome(record: SequenceRecord, canvas: Canvas, narrow: bool) -> None:
    op, bwt = panels(canvas, 2, narrow, share_y=True)
    for row, method in enumerate(record.methods):
        _draw_bar(op, row, method.op, [_op(chain) for chain in method.chains])
        _draw_bar(bwt, row, method.bwt, [_bwt(chain) for chain in method.chains])
    names = [row_name(method.name, narrow) for method in record.methods]
    for axes in (op, bwt):
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", colors=INK, length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
    op.set_xlim(0, 103)
    op.set_xlabel("OP: mean score at the end (%)")
    bwt.set_xlabel("BWT: change since learnt (points)")


def _draw_bar(axes: Axes, row: int, figure: Summary, seeds: list[float]) -> None:
    axes.barh([row], [100 * figure.mean], 0.58, color=colour_of(row % NUM_COLOURS), alpha=0.75)
    axes.plot([100 * figure.low, 100 * figure.high], [row, row], color=INK, linewidth=1.6)
    if len(seeds) > 1:
        axes.plot(
            [100 * value for value in seeds],
            [row] * len(seeds),
            marker=MARKERS[row % len(MARKERS)],
            linestyle="none",
            color=INK,
            markersize=6,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
        )


def _general_figure(record: SequenceRecord) -> Figure:
    ends = [
        f"{m.name} {formats.loss(float(m.losses_T[-1]))}" + (" with its last pack on" if m.one_on else "")
        for m in record.methods
    ]
    packs = (
        " Of packs that are told each point has that task\u2019s pack on (dashed)."
        if any(m.one_on for m in record.methods)
        else ""
    )
    words = Words(
        name="row-general",
        title="General text while the tasks are learnt",
        caption="The loss on general text after each task, the mean over the seeds; the dotted line is the base."
        + packs,
        alt=f"General loss after each of {len(record.tasks)} tasks; the base has "
        f"{formats.loss(record.base_general_loss)}. At the end: " + "; ".join(ends) + ".",
    )
    heights = legend_height([method.name for method in record.methods])
    return make_figure(words, functools.partial(_draw_general, record), (320 + heights[0], 320 + heights[1]))


def _draw_general(record: SequenceRecord, canvas: Canvas, narrow: bool) -> None:
    axes = canvas.subplots()
    places = np.arange(len(record.tasks) + 1)
    for number, method in enumerate(record.methods):
        losses = [record.base_general_loss, *method.losses_T]
        axes.plot(
            places[1:] if method.one_on else places,
            losses[1:] if method.one_on else losses,
            color=colour_of(number % NUM_COLOURS),
            linestyle=(0, (2, 1.5)) if method.one_on else "-",
            marker=MARKERS[number % len(MARKERS)],
            markersize=7,
            linewidth=1.8,
            label=method.name,
        )
    axes.axhline(record.base_general_loss, color=MUTED, linestyle=":", linewidth=1.4)
    names = ["base", *(task.name for task in record.tasks)]
    axes.set_xticks(places, names, rotation=50 if narrow else 0, ha="right" if narrow else "center")
    axes.set_xlabel("after learning")
    axes.set_ylabel("general loss (nats per token)")
    show_legend(canvas, axes, narrow)
