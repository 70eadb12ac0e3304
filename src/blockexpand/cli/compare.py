"""The verb compare: arms side by side at equal budget."""

from __future__ import annotations

import sys
from pathlib import Path

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show


def compare(recipe: Path, /, *settings: str, workers: int = 1, common: Shared = DEFAULTS) -> int:
    """Run methods side by side at equal budget, by a recipe. What is finished is not run again.

    Exit code 1: nothing that any method learnt is inside the budget.

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
    from blockexpand.reporting import comparison_table, verdict

    chosen = comparison.load_recipe(recipe, settings)
    result = comparison.compare(chosen, workers)
    show(common, result, lambda: comparison_table(result))
    if result.kept_nothing:
        print(f"NOTHING INSIDE THE BUDGET: {verdict(result).sentence}", file=sys.stderr)
        return FAILED
    return DONE
