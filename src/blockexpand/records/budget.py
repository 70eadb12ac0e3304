"""What a budget promises: how much general loss rose, at most how much, how surely, and what would be needed for more.

In: nothing; these are values. Out: one record, and one sentence that says it, the same in terminal, report and card.
A budget is a share of the base's general loss (0.01 = 1 %). It is tested on documents that steered nothing.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from blockexpand.records.codec import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleTried:
    """One scale that was looked at, in the order of looking."""

    scale: float
    rises: dict[str, float | None]
    """The mean rise of general loss of each kind of text, as a share of the base's; None: it is no number."""
    bounds: dict[str, float | None]
    """The upper bound of each; None: this text has no bound at any rise."""
    inside: bool
    """Whether every bound is inside its budget."""
    domain_loss: float | None = None
    """On the domain's steering rows, nats a token; None: not measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextKept:
    """One kind of general text, at the scale that was chosen (at the first one tried, where none was inside)."""

    text: str
    """What kind it is: `general`, or the name the user gave it."""
    budget: float
    num_documents: int
    num_tokens: int
    rise: float | None
    """None: the loss is no number."""
    bound: float | None
    """The upper bound of the rise; also the smallest budget that could be promised at this scale. None: too few
    documents for any."""
    documents_needed: int | None
    """With the spread and the mean seen at this scale, so many documents bring the bound to the budget; None: no
    number would, because the mean itself is outside."""

    @property
    def inside(self) -> bool:
        """Whether the bound is inside the budget."""
        return self.bound is not None and self.bound <= self.budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """What is promised of a model's general loss."""

    FORMAT: ClassVar[str] = "blockexpand.budget"
    FORMAT_VERSION: ClassVar[int] = 1

    level: float
    """The probability, over the choice of documents, that nothing outside the budget is called inside; for all kinds
    of text together."""
    method: str
    """How the bounds are made: see `training/budget.py`."""
    least_documents: int
    """With fewer documents the method's level is not what it says, and nothing is promised."""
    scale: float | None
    """What was learnt is multiplied by it: 1 all of it, 0 the base. None: a model was measured as it is."""
    texts: tuple[TextKept, ...]
    tried: tuple[ScaleTried, ...] = ()

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 < self.level < 1, "level", self.level, "a probability in (0, 1)")
        check(self.scale is None or self.scale >= 0, "scale", self.scale, "0 or more")
        check(len(self.texts) > 0, "texts", self.texts, "at least one kind of general text")

    @property
    def holds(self) -> bool:
        """Whether something learnt is shipped (or a model stands) whose general loss is inside every budget."""
        return self.scale != 0 and all(text.inside for text in self.texts)


def _percent(share: float, *, signed: bool = False) -> str:
    digits = ".2g" if 0 < abs(share) < 1e-4 else ".2f"
    text = f"{100 * share:{'+' if signed else ''}{digits}}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def name_text(text: str) -> str:
    """A kind of text, as people say it."""
    return f"the base's {text}" if text.startswith("own ") else f"{text} text"


def _of_text(kept: TextKept, statement: BudgetStatement) -> str:
    """What is known of one kind of text."""
    if kept.rise is None:
        return f"general loss on {name_text(kept.text)} is no number"
    where = f"{name_text(kept.text)} ({kept.num_documents:,} documents, {kept.num_tokens:,} tokens)"
    rise = f"general loss on {where} {_percent(kept.rise, signed=True)}"
    if kept.bound is None:
        return f"{rise}, and {kept.num_documents} documents promise nothing"
    most = f"at most {_percent(kept.bound, signed=True)} with {100 * statement.level:g} % confidence"
    return f"{rise}, {most}, budget {_percent(kept.budget)}"


def _advice(statement: BudgetStatement) -> str:
    """What to do where a budget cannot be promised."""
    words = []
    for kept in statement.texts:
        if kept.inside:
            continue
        needed = kept.documents_needed
        if kept.rise is None:
            words.append("train again with a lower learning rate")
        elif kept.bound is None:
            more = max(statement.least_documents, needed or 0)
            words.append(f"give {more:,} documents of {name_text(kept.text)} or more")
        elif needed is not None and needed > kept.num_documents:
            words.append(f"give {needed:,} documents of {name_text(kept.text)}, or allow {_percent(kept.bound)}")
        else:
            words.append(
                f"allow {_percent(kept.bound)} on {name_text(kept.text)}, or train less or with more weight on it"
            )
    return "; ".join(words)


def say_budget(statement: BudgetStatement) -> str:
    """The statement in one sentence, for terminal, card and report."""
    seen = "; ".join(_of_text(kept, statement) for kept in statement.texts)
    if statement.holds:
        if statement.scale is None or statement.scale == 1:
            return f"Kept: {seen}."
        return f"Kept, with {statement.scale:g} of what was learnt: {seen}."
    advice = _advice(statement)
    if statement.scale is None:
        return f"Not promised: {seen}; {advice}."
    first = statement.tried[0].scale if statement.tried else 1.0
    return f"Not kept, so this is the base again: with {first:g} of what was learnt, {seen}; {advice}."
