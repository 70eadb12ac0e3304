"""A comparison in the terminal: the page's table, fit for 80 columns, and the same as plain data.

In: a finished comparison. Out: a rich table, plain text, or rows for `--json`. Every cell is built as text,
so nothing in a recipe's names is read as markup.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from blockexpand.records.comparison import Comparison
from blockexpand.reporting import formats
from blockexpand.reporting.comparison_tables import BROKEN, NOTHING, arms_table
from blockexpand.reporting.tables import Cell, cell_of

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

TERMINAL_COLUMNS = 80


def comparison_table(comparison: Comparison) -> Table:
    """The comparison as a table of two lines a method: figures, and under them their 95 % intervals."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    budget = comparison.recipe.retention.forgetting_budget
    title = "held-out test documents; losses in nats per token, 95 % intervals below"
    table = Table(box=box.SIMPLE_HEAD, caption=title, caption_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column("method\nlearning rate", min_width=12, max_width=27)
    table.add_column("general\ndomain\nloss", justify="right", no_wrap=True)
    table.add_column(
        f"forgetting\nbudget {formats.budget(budget)}" if budget else "forgetting", justify="right", no_wrap=True
    )
    table.add_column("gain\nof reference", justify="right", no_wrap=True)
    table.add_column("trained\nmemory", justify="right", no_wrap=True)
    table.add_column("tokens/s\nload\nCPU time", justify="right", no_wrap=True)
    base = comparison.base
    losses = f"{formats.loss(base['general'].loss)}\n{formats.loss(base['domain'].loss)}"
    table.add_row(Text("the base", style="dim"), Text(losses, style="dim"))
    figures = arms_table(comparison)
    for row in figures.rows:
        cells = {c.key: cell_of(c, value) for c, value in zip(figures.columns, row, strict=True)}
        table.add_row(*_texts(cells))
    return table


def comparison_text(comparison: Comparison, width: int = TERMINAL_COLUMNS) -> str:
    """The table as plain text, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(comparison_table(comparison))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _texts(cells: dict[str, Cell]) -> list[Text]:
    from rich.text import Text

    def two(upper: str, lower: str, style: str = "") -> Text:
        return Text.assemble((upper, style), "\n", (lower, "dim"))

    forgetting, gain, share = cells["forgetting"], cells["gain"], cells["gain_over_reference"].main
    is_broken = cells["budget"].main in (BROKEN, NOTHING)
    return [
        two(cells["method"].main, f"lr {cells['lr'].main}"),
        Text(f"{cells['general_loss'].main}\n{cells['domain_loss'].main}"),
        two(forgetting.main, forgetting.interval, "red" if is_broken else ""),
        two(gain.main if share == formats.NONE else f"{gain.main} = {share}", gain.interval),
        two(cells["num_trainable_parameters"].main, cells["peak_memory_bytes"].main),
        two(cells["tokens_per_second"].main, f"{cells['load'].main}\n{cells['cpu_seconds'].main}"),
    ]
