"""The words and settings of routing, without torch: records hold them, and are read where no model is.

In: settings. Out: a `Rule`, names of sets of packs. Refused: a prompt too short to be scored, evidence below nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockexpand.records import check

Names = tuple[str, ...]
"""The packs that are on; none is the base."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a candidate is chosen."""

    prompt_tokens: int = 128
    """The prompt is scored on its last so many tokens at most."""
    evidence: float = 5.0
    """Nats, over all scored tokens together, by which a candidate with packs has to beat the base, or the base it is:
    as odds 148 to one. So a short prompt needs a clearer difference at each token than a long one."""
    together: bool = False
    """Whether all packs at once are a candidate too: stacked packs disturb one another, and were chosen wrongly."""

    def __post_init__(self) -> None:
        check(self.prompt_tokens >= 2, "prompt_tokens", self.prompt_tokens, "2 or more")
        check(self.evidence >= 0, "evidence", self.evidence, "0 or more")


def name_of(names: Names) -> str:
    """A set of packs in one word: `base`, `code`, `code+law`."""
    return "+".join(names) or "base"
