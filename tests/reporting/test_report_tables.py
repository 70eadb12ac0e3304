"""Figures as text, tables as CSV, the terminal's table, and the marks of the methods."""

from __future__ import annotations

import csv
import io

import pytest
from report_examples import ARMS, Arm, comparison_of

from blockexpand.reporting import comparison_table, comparison_text, formats
from blockexpand.reporting.comparison_tables import arms_table, contrasts_table, trials_table
from blockexpand.reporting.methods import methods_of
from blockexpand.reporting.tables import Column, Spread, Table, cell_of, interval


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("loss", 2.34567, "2.346"),
        ("loss", -0.0001, "0.000"),
        ("difference", 0.612, "+0.612"),
        ("difference", -0.0126, "\u22120.013"),
        ("difference", 0.0001, "0.000"),
        ("rise", 0.0042, "+0.42 %"),
        ("rise", -0.0042, "\u22120.42 %"),
        ("rise", 0.386, "+38.6 %"),
        ("share", 0.871, "87 %"),
        ("points", -0.153, "\u221215 points"),
        ("count", 1_500_000, "1,500,000"),
        ("parameters", 1_770_000, "1.77 M"),
        ("parameters", 999_999, "1.00 M"),
        ("parameters", 512, "512"),
        ("bytes", 1_234_000_000, "1.23 GB"),
        ("bytes", 12, "12 B"),
        ("rate", 14250.4, "14,250"),
        ("rate", 0.31, "0.31"),
        ("seconds", 0.214, "0.21 s"),
        ("seconds", 59.97, "1 min 00 s"),
        ("seconds", 264.0, "4 min 24 s"),
        ("seconds", 7320.0, "2 h 02 min"),
        ("lr", 0.003, "0.003"),
        ("lr", 0.000125, "1.25e-4"),
        ("perplexity", 22.198, "22.2"),
        ("perplexity", 1313.2, "1,313"),
        ("text", "a\nb", "a\nb"),
        ("loss", None, "\u2013"),
    ],
)
def test_how_a_figure_is_written(kind: formats.Kind, value: object, text: str) -> None:
    assert formats.write(kind, value) == text


def test_a_unit_is_said_once_in_an_interval() -> None:
    assert interval("rise", Spread(value=0, low=-0.001, high=0.002)) == "\u22120.10 to +0.20 %"
    assert interval("loss", Spread(value=0, low=1, high=2)) == "1.000 to 2.000"


def test_the_csv_gives_the_page_its_figures() -> None:
    comparison = comparison_of()
    for table in (arms_table, contrasts_table, trials_table):
        made = table(comparison)
        rows = list(csv.DictReader(io.StringIO(made.to_csv())))
        assert len(rows) == len(made.rows)
        for row, values in zip(rows, made.rows, strict=True):
            for column, value in zip(made.columns, values, strict=True):
                again = _read(column, row)
                assert cell_of(column, again) == cell_of(column, value), column.key


def _read(column: Column, row: dict[str, str]) -> str | float | Spread | None:
    if column.spread:
        value, low, high = (float(row[column.key + end]) for end in ("", "_low", "_high"))
        return Spread(value=value, low=low, high=high)
    text = row[column.key]
    return text if column.kind == "text" else float(text) if text else None


def test_the_table_has_every_arm_in_order() -> None:
    table = arms_table(comparison_of(seeds=(0, 1, 2)))
    assert [row[0] for row in table.rows] == [
        "Block expansion",
        "Full fine-tuning",
        "LoRA",
        "Training old blocks",
        "Full fine-tuning, unrestricted",
    ]
    assert [row[-1] for row in table.rows] == [3] * 5
    budgets = [row[[c.key for c in table.columns].index("budget")] for row in table.rows]
    assert budgets == ["inside; its interval crosses"] * 3 + ["over the budget", "not asked for"]
    assert "Student\u2019s t" in table.notes[1]


def test_contrasts_say_noise_where_it_is() -> None:
    rows = contrasts_table(comparison_of()).rows
    assert [row[2] for row in rows] == ["learnt less", "learnt more", "noise", "learnt less"]
    assert [row[4] for row in rows] == ["noise", "noise", "forgot less", "forgot less"]


def test_a_row_of_another_length_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="under 1 columns"):
        Table(name="x", title="x", columns=(Column(key="a", title="a"),), rows=(("1", "2"),))


def test_methods_of_one_kind_are_told_apart() -> None:
    arms = (Arm(name="blocks 4", gain=0.5, forgetting=0.0), Arm(name="blocks 8", gain=0.6, forgetting=0.0))
    methods = methods_of(comparison_of((*arms, ARMS[2])).recipe)
    assert [method.name for method in methods.values()] == [
        "Block expansion (blocks 4)",
        "Block expansion (blocks 8)",
        "LoRA",
    ]


def test_no_two_methods_look_alike() -> None:
    arms = tuple(Arm(name=f"blocks {n}", gain=0.5, forgetting=0.0) for n in range(20))
    looks = [(method.colour, method.marker) for method in methods_of(comparison_of(arms).recipe).values()]
    assert len(set(looks)) == 20


def test_the_terminal_table_fits_and_has_every_figure() -> None:
    from rich.text import Text

    comparison = comparison_of()
    text = comparison_text(comparison)
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("+0.612 = 82 %", "+0.598 to +0.626", "+1.27 %", "+38.3 to +38.9 %", "1.77 M", "14,250", "3.098"):
        assert figure in text
    # The base's row ends early, and rich fills it up with "".
    cells = [cell for column in comparison_table(comparison).columns for cell in column._cells]
    assert all(isinstance(cell, Text) or cell == "" for cell in cells)


def test_a_name_is_not_markup() -> None:
    arms = (Arm(name="blocks [red]", gain=0.5, forgetting=0.0), Arm(name="blocks [/]", gain=0.6, forgetting=0.0))
    text = " ".join(comparison_text(comparison_of(arms)).split())
    assert "[red]" in text
    assert "[/]" in text
