"""The verb compare: arms side by side at equal budget."""

from __future__ import annotations

from pathlib import Path

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
