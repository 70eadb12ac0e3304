"""What a statement says, and that it goes to disk and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from blockexpand.errors import RecordError
from blockexpand.records import read_record, write_record
from blockexpand.records.budget import BudgetStatement, ScaleTried, TextKept, say_budget

KEPT = TextKept(
    text="prose",
    budget=0.01,
    num_documents=240,
    num_tokens=61_234,
    rise=0.0042,
    bound=0.0081,
    documents_needed=120,
)
STATEMENT = BudgetStatement(
    level=0.95,
    method="t",
    least_documents=20,
    scale=1.0,
    texts=(KEPT,),
    tried=(ScaleTried(scale=1.0, rises={"prose": 0.0042}, bounds={"prose": 0.0081}, inside=True, domain_loss=2.5),),
)


def test_a_statement_goes_to_disk_and_back(tmp_path: Path) -> None:
    write_record(tmp_path / "budget.json", STATEMENT)
    assert read_record(BudgetStatement, tmp_path / "budget.json") == STATEMENT


@pytest.mark.parametrize(
    ("scale", "kept", "holds", "said"),
    [
        (1.0, KEPT, True, ["prose", "240", "61,234", "+0.42 %", "+0.81 %", "95 %", "1 %"]),
        (None, KEPT, True, ["+0.42 %", "+0.81 %"]),
        (0.5, KEPT, True, ["0.5 of", "+0.81 %"]),
        (0.0, dataclasses.replace(KEPT, bound=0.012, documents_needed=900), False, ["+1.2 %", "900"]),
        (0.0, dataclasses.replace(KEPT, rise=0.02, bound=0.03, documents_needed=None), False, ["+2 %", "+3 %"]),
        (
            0.0,
            dataclasses.replace(KEPT, num_documents=7, bound=None, documents_needed=10),
            False,
            ["7 documents", "20"],
        ),
        (None, dataclasses.replace(KEPT, bound=0.012, documents_needed=900), False, ["+1.2 %", "900"]),
    ],
)
def test_one_sentence_says_it(scale: float | None, kept: TextKept, holds: bool, said: list[str]) -> None:
    statement = dataclasses.replace(STATEMENT, scale=scale, texts=(kept,))
    assert statement.holds is holds
    sentence = say_budget(statement)
    assert all(part in sentence for part in said), sentence
    assert "\n" not in sentence


def test_a_level_is_a_probability() -> None:
    with pytest.raises(RecordError, match=r"95\.0"):
        dataclasses.replace(STATEMENT, level=95.0)
