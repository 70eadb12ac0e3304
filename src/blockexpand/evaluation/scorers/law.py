"""Scores of the law suite: the likeliest option per token, and amounts of money within a tenth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from blockexpand.evaluation.lm import Likelihood

_AMOUNT = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TOLERANCE = 0.1  # LegalBench, sara_numeric: within 10 % of the true amount


def labelled(rows: Dataset) -> Dataset:
    """The rows with at least one label."""
    return rows.filter(lambda row: bool(row["labels"]))


def first_label(doc: dict[str, Any]) -> str:
    """What an example shows as the answer; the names stand in tasks/unfair_tos.yaml in the data's order."""
    names = (
        "limitation of liability",
        "unilateral termination",
        "unilateral change",
        "content removal",
        "contract by using",
        "choice of law",
        "jurisdiction",
        "arbitration",
    )
    return names[doc["labels"][0]]


def unfair_tos(doc: dict[str, Any], results: Sequence[Likelihood]) -> dict[str, float]:
    """Right if the option of the highest likelihood per token is one of the labels."""
    per_token = [one[0] / one.num_tokens for one in results]
    return {"acc": float(per_token.index(max(per_token)) in doc["labels"])}


def amount(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right if the first number is within a tenth of the reference; a reference of 0 wants 0."""
    truth, said = _number(doc["answer"]), _number(results[0])
    right = said is not None and truth is not None and abs(said - truth) <= _TOLERANCE * abs(truth)
    return {"acc": float(right)}


def _number(text: str) -> float | None:
    found = _AMOUNT.search(str(text))
    return float(found.group().replace(",", "")) if found else None
