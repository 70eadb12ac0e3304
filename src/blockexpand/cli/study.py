"""The verb that runs the paper's studies."""

from __future__ import annotations

from pathlib import Path

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show


def study(
    name: str | None = None,
    /,
    *settings: str,
    out: Path = Path("runs/studies"),
    workers: int = 1,
    common: Shared = DEFAULTS,
) -> int:
    """Run one of the paper's studies; without a name, list them. What is finished is not run again.

    Parameters
    ----------
    name
        A study that ships with blockexpand, or a YAML file.
    settings
        Settings that replace the recipe's, e.g. base=models/base compare.domain_tokens=500000.
    out
        The folder of all studies, which share texts and runs.
    workers
        Runs at a time; the cores are shared out among them.
    """
    from blockexpand import studies

    if name is None:
        recipes = {known: studies.load_study(known)[1] for known in studies.known_studies()}
        lines = [f"{known:<12} {recipe.title}: {recipe.question}" for known, recipe in recipes.items()]
        show(common, recipes, "\n".join(lines))
        return DONE
    finding = studies.study(name, out, settings, workers)
    pages = "".join(f"\nThe report: {page}" for page in finding.pages)
    show(common, finding, f"{finding.text}{pages}")
    return DONE
