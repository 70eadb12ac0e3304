"""What importance is measured on: which text, how much of it, by which measure, where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from blockexpand.expansion import Measure
from blockexpand.records import check

DEFAULT_TOKENS = 16_384
"""Measured here, see docs/log.md: on the tiny base 2,040 predictions choose the same four places as 16,276."""
ROW_TOKENS = 512
"""Long enough for context, short enough that the logits of a row stay below 300 MB at a vocabulary of 128 k."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """General text to measure the base on: text like what it knows and must not forget."""

    texts: tuple[str | Path, ...]
    """Files (.txt, .md; .jsonl with a `text` field), folders of them, or folders that `prepare` wrote."""
    max_tokens: int = DEFAULT_TOKENS
    """Read no more than this many tokens of them, in the order given."""
    measure: Measure = "kl"
    """By what blocks are ranked: `kl` or `loss` when a block is skipped, or `cosine` of its input and output."""
    device: str = "cpu"
    """Where the base runs, e.g. cuda."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        is_list = isinstance(self.texts, tuple | list) and len(self.texts) > 0
        check(is_list, "texts", self.texts, "a list of files or folders of general text, at least one")
        whole = isinstance(self.max_tokens, int) and not isinstance(self.max_tokens, bool)
        check(whole and self.max_tokens >= 2, "max_tokens", self.max_tokens, "a whole number, 2 or more")
        measures = get_args(Measure)
        check(self.measure in measures, "measure", self.measure, f"one of {', '.join(measures)}")
