"""What was seen in each arm's chosen run: whose words it says, what each new block does, its words side by side.

In: an examination and the arms as methods. Out: tables, a figure (None where no arm has new blocks), and samples.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockexpand.comparison import BlockEffect, Examination
from blockexpand.reporting import formats
from blockexpand.reporting.methods import Method
from blockexpand.reporting.plotting import INK, SERIES, Figure, Words, legend_height, make_figure, panels, show_legend
from blockexpand.reporting.tables import Column, Spread, Table, Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_TEXTS = ("domain", "general")
_ROW = 30
_LONGEST = 320
"""Characters of a prompt or continuation that are shown."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One beginning of a test document, and how each model goes on."""

    text: str
    """Which text it is of: domain or general."""
    prompt: str
    outputs: tuple[tuple[str, str], ...]
    """Each model's name and its words, the base's first."""


def shifts_table(found: Examination, methods: Mapping[str, Method]) -> Table:
    """Where the base ranks the tokens that each method's model says greedily."""
    rows: list[tuple[Value, ...]] = []
    for name, seen in found.arms.items():
        for text, one in seen.shifts.items():
            first = Spread(value=one.rank_1, low=one.rank_1_interval.low, high=one.rank_1_interval.high)
            rows.append((methods[name].name, text, first, one.rank_2_3, one.beyond, one.num_tokens))
    return Table(
        name="shifts",
        title="Whose words the models say",
        columns=(
            Column(key="method", title="Method"),
            Column(key="text", title="After text of"),
            Column(key="rank_1", title="The base\u2019s first", kind="share", unit="of the tokens", spread=True),
            Column(key="rank_2_3", title="Second or third", kind="share"),
            Column(key="beyond", title="Lower", kind="share"),
            Column(key="num_tokens", title="Tokens", kind="count"),
        ),
        rows=tuple(rows),
        notes=(
            f"Beginnings of test documents, {found.settings.prompt_tokens} tokens long, continued greedily by "
            f"{found.settings.new_tokens}; the rank of each token under the base in the same place. Intervals are "
            "95 %, over the beginnings; first seed.",
        ),
    )


def blocks_table(found: Examination, methods: Mapping[str, Method]) -> Table | None:
    """Of each new block: how far it moves a hidden state, and what is lost without it."""
    rows: list[tuple[Value, ...]] = [
        (methods[name].name, b.id, *(b.moved.get(t) for t in _TEXTS), *(b.missed.get(t) for t in _TEXTS))
        for name, seen in found.arms.items()
        for b in seen.blocks
    ]
    if not rows:
        return None
    return Table(
        name="new-blocks",
        title="What each new block does",
        columns=(
            Column(key="method", title="Method"),
            Column(key="block", title="New block"),
            Column(key="moved_domain", title="Adds, domain", kind="share", unit="of a hidden state\u2019s size"),
            Column(key="moved_general", title="Adds, general", kind="share", unit="of a hidden state\u2019s size"),
            Column(key="missed_domain", title="Lost without it, domain", kind="difference", unit="nats per token"),
            Column(key="missed_general", title="Lost without it, general", kind="difference", unit="nats per token"),
        ),
        rows=tuple(rows),
        notes=(
            "A block that adds nothing is an identity, as each new one was at the start. Lost: how much the loss rises "
            "when this one block is bypassed and all others stay, on the first "
            f"{found.settings.ablation_rows} test rows.",
        ),
    )


def effects_of(found: Examination | None) -> tuple[str, tuple[BlockEffect, ...]] | None:
    """The first arm with new blocks, and what they do."""
    if found is None:
        return None
    return next(((name, seen.blocks) for name, seen in found.arms.items() if seen.blocks), None)


def blocks_figure(found: Examination | None, methods: Mapping[str, Method]) -> Figure | None:
    """Bars for the first method with new blocks: how far each has moved from an identity, what is lost without it."""
    known = effects_of(found)
    if known is None:
        return None
    name, effects = known
    told = "; ".join(
        f"{b.id} adds {formats.share(b.moved['domain'])} on domain text and "
        f"{formats.share(b.moved['general'])} on general text, and without it the losses rise by "
        f"{b.missed['domain']:+.3f} and {b.missed['general']:+.3f}"
        for b in effects
    )
    words = Words(
        name="new-blocks",
        title=f"What each new block does: {methods[name].inside}",
        caption="Left: what a block adds to a token\u2019s hidden state, as a share of that state\u2019s size; an "
        "identity adds nothing. Right: how much the loss rises, in nats per token, when this one block is bypassed.",
        alt=f"Bars for each new block: {told}.",
    )
    height = 90 + _ROW * len(effects) * 1.4
    legends = legend_height([f"{text} text" for text in _TEXTS])
    heights = (height + legends[0], 2 * height + 20 + legends[1])
    return make_figure(words, functools.partial(_draw, effects), heights)


def _draw(effects: tuple[BlockEffect, ...], canvas: Canvas, narrow: bool) -> None:
    moved, missed = panels(canvas, 2, narrow)
    for number, text in enumerate(_TEXTS):
        rows = [row + 0.4 * number for row in range(len(effects))]
        hatch = "" if number == 0 else "////"
        style: dict[str, Any] = {
            "height": 0.36,
            "color": SERIES[number],
            "hatch": hatch,
            "edgecolor": INK,
            "linewidth": 0.4,
        }
        moved.barh(rows, [100 * b.moved[text] for b in effects], label=f"{text} text", **style)
        missed.barh(rows, [b.missed[text] for b in effects], **style)
    for axes in (moved, missed):
        axes.set_yticks([row + 0.2 for row in range(len(effects))], [b.id for b in effects])
        axes.tick_params(axis="y", colors=INK, length=0)
    moved.set_xlabel("adds (% of the hidden state)")
    missed.set_xlabel("lost without it (nats per token)")
    missed.axvline(0, color=INK, linewidth=0.8)
    show_legend(canvas, moved, narrow)


def said(found: Examination, methods: Mapping[str, Method]) -> tuple[Said, ...]:
    """The kept continuations, side by side."""
    samples = []
    for text in _TEXTS:
        for number, prompt in enumerate(found.prompts.get(text, ())):
            outputs = [("The base", found.base.continuations[text][number])]
            outputs += [(methods[name].name, seen.continuations[text][number]) for name, seen in found.arms.items()]
            shown = tuple((name, _short(words) or "(nothing)") for name, words in outputs)
            samples.append(Said(text=text, prompt=_short(prompt), outputs=shown))
    return tuple(samples)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026"
