"""The verb report: results on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show


def report(
    folders: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    out: Path,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Put results on one HTML page that opens from disk.

    Parameters
    ----------
    folders
        Folders that compare, eval, agent, judge, train, expand or prepare wrote.
    out
        The folder to write: index.html, figures, tables.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand import reporting

    page = reporting.report(folders, out, overwrite)
    show(common, {"page": str(page)}, f"{page}")
    return DONE
