"""A plan as a column of blocks, the output on top, for the terminal.

In: a plan. Out: text, in box-drawing characters or plain ASCII, or the same as rich text with colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockexpand.records.plan import NewBlock, Plan, StackEntry
from blockexpand.units import format_bytes, format_scaled

if TYPE_CHECKING:
    from rich.text import Text

_WIDTH = 15
"""Inside of a block, in characters."""


@dataclass(frozen=True, kw_only=True)
class _Glyphs:
    top: str
    wall: str
    bottom: str
    shade: str
    dots: str
    arrow: str
    times: str
    separator: str


_UNICODE = _Glyphs(top="┌─┐", wall="│", bottom="└─┘", shade="░", dots="…", arrow="→", times="\u00d7", separator=" · ")
_ASCII = _Glyphs(top="+-+", wall="|", bottom="+-+", shade=":", dots="..", arrow="->", times="x", separator=" - ")

Segment = tuple[str, str]
"""Words and their rich style; an empty style is plain."""


def draw(plan: Plan, *, show_all: bool = False, ascii_only: bool = False) -> str:
    """The plan as plain text; runs of old blocks are one line each unless `show_all`."""
    lines = _lines(plan, show_all, _ASCII if ascii_only else _UNICODE)
    return "\n".join("".join(words for words, _ in line).rstrip() for line in lines)


def draw_rich(plan: Plan, *, show_all: bool = False) -> Text:
    """The same with colours: new blocks stand out, what is zeroed is dim."""
    from rich.text import Text

    lines = [Text.assemble(*line) for line in _lines(plan, show_all, _UNICODE)]
    return Text("\n").join(lines)


def _lines(plan: Plan, show_all: bool, glyphs: _Glyphs) -> list[list[Segment]]:
    base = plan.base
    total = f"{base.num_blocks} old + {len(plan.new_blocks)} new = {plan.num_blocks} blocks"
    left, rule, right = glyphs.top
    lines: list[list[Segment]] = [
        [(f"{base.source} ({base.family}): {total}", "bold")],
        [(plan.placement.words, "")],
        [("", "")],
        [(f"{'':8}{'output head':^{_WIDTH + 2}}", "dim")],
        [(f"{'':8}{left}{rule * _WIDTH}{right}", "")],
    ]
    lines += [_row(run, glyphs) for run in reversed(_runs(plan.stack, show_all))]
    left, rule, right = glyphs.bottom
    lines += [
        [(f"{'':8}{left}{rule * _WIDTH}{right}", "")],
        [(f"{'':8}{'embeddings':^{_WIDTH + 2}}", "dim")],
        [("", "")],
        [(_start(plan), "dim")],
    ]
    lines += [[(text, "")] for text in _config_lines(plan)]
    lines += [[(f"note: {note}", "yellow")] for note in plan.notes]
    return lines + [[(text, "")] for text in _cost_lines(plan, glyphs)]


def _runs(stack: tuple[StackEntry, ...], show_all: bool) -> list[list[StackEntry]]:
    """Old neighbours together, new blocks each alone; from bottom to top."""
    runs: list[list[StackEntry]] = []
    for entry in stack:
        joins = runs and entry.new is None and runs[-1][-1].new is None and not show_all
        if joins:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _row(run: list[StackEntry], glyphs: _Glyphs) -> list[Segment]:
    first, last = run[0], run[-1]
    positions = str(first.position) if first is last else f"{first.position}-{last.position}"
    if first.new is not None:
        return _new_row(positions, first.new, glyphs)
    label = f"old {first.old}" if first is last else f"old {first.old}{glyphs.dots}{last.old}"
    beside = f"  {glyphs.times}{len(run)}" if first is not last else ""
    return [(f"{positions:>7} {glyphs.wall}{label:^{_WIDTH}}{glyphs.wall}", ""), (beside, "dim")]


def _new_row(positions: str, block: NewBlock, glyphs: _Glyphs) -> list[Segment]:
    shade = glyphs.shade
    return [
        (f"{positions:>7} {glyphs.wall}", ""),
        (f"{' new ':{shade}^{_WIDTH}}", "bold green"),
        (glyphs.wall, ""),
        (f"  {block.id}", "green"),
        (f"  copy of old {block.donor}", ""),
    ]


def _config_lines(plan: Plan) -> list[str]:
    spelled = [
        f"{key} = {value if not isinstance(value, list) else f'list of {len(value)}'}"
        for key, value in plan.config_changes.items()
    ]
    return [f"config: {', '.join(spelled)}"]


def _start(plan: Plan) -> str:
    if plan.init == "identity":
        return f"zero in each new block: {', '.join(plan.silent_words)}"
    what = "plain copies" if plan.init == "copy" else "copies with random matrices"
    return f"new blocks start as {what}: an ablation, the deeper model is another function from the start"


def _cost_lines(plan: Plan, glyphs: _Glyphs) -> list[str]:
    cost, arrow = plan.cost, glyphs.arrow
    rows = [
        (
            "parameters",
            f"{cost.parameters_before:,} {arrow} {cost.parameters_after:,} ({cost.parameters_new:,} new)",
        ),
        ("weights", f"{format_bytes(cost.weights_bytes_before)} {arrow} {format_bytes(cost.weights_bytes_after)}"),
        (
            "training",
            f"{format_bytes(cost.training_memory_bytes)} for weights, gradients and moments, and the activations",
        ),
        (
            "per token",
            f"forward {format_scaled(cost.forward_flops_per_token_before, 'FLOP')} {arrow} "
            f"{format_scaled(cost.forward_flops_per_token_after, 'FLOP')}{glyphs.separator}training the new blocks "
            f"{format_scaled(cost.training_flops_per_token, 'FLOP')}, the whole base "
            f"{format_scaled(cost.full_training_flops_per_token, 'FLOP')} (at "
            f"{cost.context_tokens:,} tokens)",
        ),
    ]
    return [f"{name:<11}{value}" for name, value in rows]
