"""A plan as a column of blocks, the output on top, for the terminal.

In: a plan. Out: rich text: new blocks stand out, runs of old blocks are one line each, what it costs stands below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockexpand.records.plan import Plan, StackEntry
from blockexpand.units import format_bytes

if TYPE_CHECKING:
    from rich.text import Text

_WIDTH = 15
"""Inside of a block, in characters."""
_TIMES = "\u00d7"

Segment = tuple[str, str]
"""Words and their rich style; an empty style is plain."""


def draw(plan: Plan, *, show_all: bool = False) -> Text:
    """The plan as text for a terminal, every old block on a line of its own with `show_all`."""
    from rich.text import Text

    return Text("\n").join(Text.assemble(*line) for line in _lines(plan, show_all))


def _lines(plan: Plan, show_all: bool) -> list[list[Segment]]:
    base = plan.base
    total = f"{base.num_blocks} old + {len(plan.new_blocks)} new = {plan.num_blocks} blocks"
    config = [f"{k} = {f'list of {len(v)}' if isinstance(v, list) else v}" for k, v in plan.config_changes.items()]
    return [
        [(f"{base.source} ({base.family}): {total}", "bold")],
        [(plan.placement.words, "")],
        [("", "")],
        [(f"{'':8}{'output head':^{_WIDTH + 2}}", "dim")],
        [(f"{'':8}┌{'─' * _WIDTH}┐", "")],
        *(_row(run) for run in reversed(_runs(plan.stack, show_all))),
        [(f"{'':8}└{'─' * _WIDTH}┘", "")],
        [(f"{'':8}{'embeddings':^{_WIDTH + 2}}", "dim")],
        [("", "")],
        [(_start(plan), "dim")],
        [(f"config: {', '.join(config)}", "")],
        *([(f"note: {note}", "yellow")] for note in plan.notes),
        *([(f"{name:<11}{figure}", "")] for name, figure in _costs(plan).items()),
    ]


def _runs(stack: tuple[StackEntry, ...], show_all: bool) -> list[list[StackEntry]]:
    """Old neighbours together, new blocks each alone; from bottom to top."""
    runs: list[list[StackEntry]] = []
    for entry in stack:
        if runs and entry.new is None and runs[-1][-1].new is None and not show_all:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _row(run: list[StackEntry]) -> list[Segment]:
    first, last = run[0], run[-1]
    positions = str(first.position) if first is last else f"{first.position}-{last.position}"
    if first.new is not None:
        return [
            (f"{positions:>7} │", ""),
            (f"{' new ':░^{_WIDTH}}", "bold green"),
            ("│", ""),
            (f"  {first.new.id}", "green"),
            (f"  copy of old {first.new.donor}", ""),
        ]
    label = f"old {first.old}" if first is last else f"old {first.old}…{last.old}"
    row: list[Segment] = [(f"{positions:>7} │{label:^{_WIDTH}}│", "")]
    return row if first is last else [*row, (f"  {_TIMES}{len(run)}", "dim")]


def _start(plan: Plan) -> str:
    if plan.init == "identity":
        return f"zero in each new block: {', '.join(plan.silent_words)}"
    what = "plain copies" if plan.init == "copy" else "copies with random matrices"
    return f"new blocks start as {what}: an ablation, the deeper model is another function from the start"


def _costs(plan: Plan) -> dict[str, str]:
    cost = plan.cost
    return {
        "parameters": f"{cost.parameters_before:,} → {cost.parameters_after:,} ({cost.parameters_new:,} new)",
        "weights": f"{format_bytes(cost.weights_bytes_before)} → {format_bytes(cost.weights_bytes_after)}",
        "training": f"{format_bytes(cost.training_memory_bytes)} for weights, gradients and moments, and the "
        "activations",
    }
