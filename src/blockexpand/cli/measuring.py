"""The verbs that set side by side and tell: compare, report, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show


def compare(recipe: Path, /, *settings: str, workers: int = 1, common: Shared = DEFAULTS) -> int:
    """Run methods side by side at equal budget, by a recipe. What is finished is not run again.

    Parameters
    ----------
    recipe
        A YAML file: base, data, arms, learning rates, seeds.
    settings
        Settings that replace the recipe's, e.g. domain_tokens=500000.
    workers
        Runs at a time; the cores are shared out among them.
    """
    from blockexpand import comparison
    from blockexpand.reporting import comparison_table

    chosen = comparison.load_recipe(recipe, settings)
    result = comparison.compare(chosen, workers)
    show(common, result, lambda: comparison_table(result))
    return DONE


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


def demo(
    *,
    out: Path = Path("demo-out"),
    full: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """The whole story on the tiny base: plan, expand, prove, prepare, train, instruct, compare, report.

    Parameters
    ----------
    out
        The folder for everything it makes.
    full
        Three seeds and three learning rates for each method, with intervals; takes about an hour.
    workers
        Runs at a time, in the comparison.
    overwrite
        Start over when the folder holds a finished demo, or one of other settings.
    """
    from blockexpand import demonstration

    story = demonstration.demo(out, full=full, workers=workers, overwrite=overwrite)
    show(common, story, story.text)
    return DONE
