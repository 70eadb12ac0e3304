"""What a calibration of packs is asked for, and what it found: the gain of each pack, and the losses that it was for.

In and out: frozen values, strictly read. Refused: numbers that make no sense. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from blockexpand.records import check

GENERAL = "general"
"""The text of this name is what is to be kept, as in `eval --data general=...`; all others are to be gained."""
STORED, HALF, CALIBRATED = "stacked, as stored", "stacked, at half scale", "stacked, calibrated"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class GainSettings:
    """How gains are found, and what is measured then."""

    rows: int = 8
    """Of each text, that gains are found on."""
    steps: int = 16
    """Of the descent."""
    split: str = "validation"
    """Where those rows are from."""
    test_split: str = "test"
    """What the losses that are shown are of; another one, since gains suit the rows that they were found on."""
    test_rows: int = 64
    """Of each text, at most."""
    general_weight: float = 1.0
    """What the loss of general text counts, where there is some; that of every other text counts 1."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the weights are loaded as."""

    def __post_init__(self) -> None:
        for name in ("rows", "steps", "test_rows"):
            check(vars(self)[name] >= 1, name, vars(self)[name], "1 or more")
        check(0 <= self.general_weight <= 1e6, "general_weight", self.general_weight, "0 to a million")
        other = f"another split than {self.split!r}, where gains are found"
        check(self.test_split != self.split, "test_split", self.test_split, other)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the descent."""

    gains: dict[str, float]
    """Of each pack."""
    loss: float
    """The texts' losses by their weights, on the rows that gains are found on."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The losses of the model in one state."""

    rule: str
    """`base`, a pack alone, or all packs stacked in some way."""
    gains: dict[str, float]
    """Of each pack that is on."""
    losses: dict[str, float]
    """Nats per token, by text."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What was found."""

    FORMAT: ClassVar[str] = "blockexpand.calibration"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    """The version that wrote it."""
    base: str
    """As it was given; for people."""
    settings: GainSettings
    """How it was done."""
    texts: dict[str, dict[str, str]]
    """For each text the digests of both splits."""
    packs: dict[str, str]
    """The fingerprints of the packs as they were given."""
    gains: dict[str, float]
    """By what each of them was scaled."""
    steps: tuple[Step, ...]
    """Every point that was tried; that of the least loss was taken."""
    measured: tuple[Measured, ...]
    """On the test split: the base, each pack alone, all of them as stored, at half scale, and as they were written."""


def table_of(found: Calibrated) -> str:
    """The losses in lines for a person: of general text the rise, of others what is gained, and how much of the most
    that one pack alone gains there.
    """
    base, *others = found.measured
    names = sorted(base.losses, key=lambda name: (name != GENERAL, list(base.losses).index(name)))
    alone = [one for one in others if one.rule.endswith(" alone")]
    best = {name: max(base.losses[name] - one.losses[name] for one in alone) for name in names}
    rows = [["", *names], [BASE, *(f"{base.losses[name]:.4f}" for name in names)]]
    for one in others:
        cells = []
        for name in names:
            loss, gain = one.losses[name], base.losses[name] - one.losses[name]
            kept = f", {gain / best[name]:.0%}" if best[name] > 0 and one not in alone else ""
            told = f"{loss / base.losses[name] - 1:+.2%}" if name == GENERAL else f"gain {gain:+.4f}{kept}"
            cells.append(f"{loss:.4f}  {told}")
        rows.append([one.rule, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
