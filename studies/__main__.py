"""`python -m studies NAME [key=value ...]`: run a study; without a name, list them."""

from __future__ import annotations

import sys
from pathlib import Path

from cyclopts import App

import blockexpand
from blockexpand.progress import progress_on_stderr
from studies.recipe import known_studies, load_study
from studies.study import study

app = App(
    name="python -m studies", help="The paper's studies, on the tiny base or on another.", result_action="return_value"
)


@app.default
def main(name: str | None = None, /, *settings: str, out: Path = Path("runs/studies"), workers: int = 1) -> None:
    """Run a study. What is finished is not run again.

    Parameters
    ----------
    name
        A recipe of studies/recipes, or a YAML file; without one, the studies are listed.
    settings
        Settings that replace the recipe's, e.g. base=models/base compare.domain_tokens=500000.
    out
        The folder of all studies, which share texts and runs.
    workers
        Runs at a time; the cores are shared out among them.
    """
    if name is None:
        for known in known_studies():
            recipe = load_study(known)[1]
            print(f"{known:<12} {recipe.title}: {recipe.question}")
        return
    with progress_on_stderr():
        print(study(name, out, settings, workers))


if __name__ == "__main__":
    try:
        app()
    except blockexpand.BlockexpandError as error:
        sys.exit(f"studies: {error}")
