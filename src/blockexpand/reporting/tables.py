"""A table, once: what the page, the CSV file and the terminal all show.

In: columns with a kind of figure each, and rows of raw values. Out: text cells, CSV with the raw values.
Refused (an assert, for it is our mistake): a row of another length than the columns.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

from blockexpand.records.comparison import Summary
from blockexpand.records.intervals import Interval
from blockexpand.reporting.formats import Kind, write


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes zero, or has no width: then it comes from one document and says nothing."""
        return self.low <= 0 <= self.high or self.low == self.high


def spread_of(figure: Summary | Interval, scale: float = 1.0) -> Spread:
    """The figure of a record, times `scale`; a negative one turns the interval round."""
    middle = figure.mean if isinstance(figure, Summary) else figure.difference
    ends = sorted((figure.low * scale, figure.high * scale))
    return Spread(value=middle * scale, low=ends[0], high=ends[1])


Value = str | int | float | Spread | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    key: str
    """Its name in the CSV file; a column of spreads has `<key>_low` and `<key>_high` beside it."""
    title: str
    kind: Kind = "text"
    unit: str = ""
    """Said once, under the title."""
    spread: bool = False
    """Whether its figures carry an interval."""
    under: bool = False
    """Whether the page writes it small under the column before it; in the CSV file it is a column like any."""
    before: str = ""
    """Words that stand before a figure that is written under another."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure as it is shown."""

    main: str
    interval: str
    """`low to high`, or empty."""
    is_number: bool
    under: tuple[str, ...] = ()
    """What stands small below it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns; the first column names the row."""

    name: str
    """Its file's name, without the suffix."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences under the table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{self.name}: {row} under {len(self.columns)} columns"

    @property
    def headings(self) -> tuple[Column, ...]:
        """The columns that have a heading: all but those written under another."""
        return tuple(column for column in self.columns if not column.under)

    def cells(self) -> list[list[Cell]]:
        """Every row as text, a cell for each heading."""
        return [self._row(row) for row in self.rows]

    def _row(self, row: tuple[Value, ...]) -> list[Cell]:
        cells: list[Cell] = []
        for column, value in zip(self.columns, row, strict=True):
            cell = cell_of(column, value)
            if column.under:
                cells[-1] = replace(cells[-1], under=(*cells[-1].under, column.before + cell.main))
            else:
                cells.append(cell)
        return cells

    def to_csv(self) -> str:
        """The raw values, not rounded; None is an empty field."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in _csv_names(column)])
        for row in self.rows:
            pairs = zip(self.columns, row, strict=True)
            writer.writerow([item for column, value in pairs for item in _csv_values(column, value)])
        return stream.getvalue()


def cell_of(column: Column, value: Value) -> Cell:
    """One figure as text."""
    if isinstance(value, Spread):
        return Cell(main=write(column.kind, value.value), interval=interval(column.kind, value), is_number=True)
    is_number = column.kind != "text"
    return Cell(main=write(column.kind, value), interval="", is_number=is_number)


def interval(kind: Kind, spread: Spread) -> str:
    """`low to high`, a unit that both have written once: +0.20 to +1.04 %."""
    low, high = write(kind, spread.low), write(kind, spread.high)
    number, space, unit = low.partition(" ")
    return f"{number if high.endswith(space + unit) else low} to {high}"


def _csv_names(column: Column) -> list[str]:
    return [column.key, f"{column.key}_low", f"{column.key}_high"] if column.spread else [column.key]


def _csv_values(column: Column, value: Value) -> list[str | int | float | None]:
    if isinstance(value, Spread):
        assert column.spread, f"{column.key} is not a column of spreads"
        return [value.value, value.low, value.high]
    return [value, None, None] if column.spread else [value]
