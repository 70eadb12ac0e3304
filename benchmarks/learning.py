"""What makes block expansion learn more and forget less? Small comparisons on the tiny base.

Each study is a file of `benchmarks/learning/`: the arms of a comparison and its budget. The texts are the
demo's. Runs are cached under `runs/learning/`, so a study that gets another arm runs only that one.

    .venv/bin/python benchmarks/learning.py rates placement [--workers 2]

Prints one line a run: gain on the test documents (and as a share of the best unrestricted run of the same
study), forgetting on the test documents, and how far the run would have gone without its budget.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blockexpand.comparison import compare
from blockexpand.corpus import prepare
from blockexpand.data import TINY_BASE as BASE
from blockexpand.progress import progress_on_stderr
from blockexpand.records import from_plain, read_yaml
from blockexpand.records.comparison import CompareRecipe, Comparison, Trial
from blockexpand.staging import RECORD_NAME
from texts import english_text, python_text

STUDIES = Path(__file__).parent / "learning"
WORK = Path("runs/learning")


def make_texts() -> dict[str, str]:
    """Prepare the demo's Python and English, unless they are there."""
    for name, recipe in (("domain", python_text()), ("general", english_text())):
        if not (WORK / name / RECORD_NAME).is_file():
            prepare(recipe, BASE, WORK / name)
    return {"domain": str(WORK / "domain"), "general": str(WORK / "general")}


def load_study(name: str) -> CompareRecipe:
    """A study as a comparison of the tiny base on the demo's texts."""
    path = STUDIES / f"{name}.yaml"
    settings = read_yaml(path)
    data = {**make_texts(), "validation_rows": 16}
    return from_plain(CompareRecipe, {"base": str(BASE), "out": str(WORK / name), "data": data, **settings}, str(path))


def line(trial: Trial, found: Comparison, reference: float | None) -> str:
    """The figures of one run."""
    base, first, last = found.base, trial.curve[0], trial.curve[-1]
    gain = base["domain"].loss - trial.held_out["domain"].loss
    forgetting = trial.held_out["general"].loss / base["general"].loss - 1
    share = f" = {gain / reference:4.0%}" if reference else ""
    return (
        f"{trial.arm:30} lr {trial.lr:<7g} seed {trial.seed}  gain {gain:.3f}{share}  forgetting {forgetting:+.2%}  "
        f"shipped at step {trial.steering.step} of {last.step}  "
        f"(last: {first.domain - last.domain:.3f} at {last.rise or 0:+.2%})  {trial.tokens_per_second:,.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.studies:
        with progress_on_stderr():
            found = compare(load_study(name), arguments.workers)
        free = {arm.name for arm in found.recipe.arms if arm.unrestricted}
        losses = [trial.held_out["domain"].loss for trial in found.trials if trial.arm in free]
        reference = found.base["domain"].loss - min(losses) if losses else None
        base = ", ".join(f"{text} {one.loss:.4f}" for text, one in found.base.items())
        print(f"{name}: {found.recipe.domain_tokens:,} domain tokens; the base: {base}")
        for trial in found.trials:
            print("  " + line(trial, found, reference), flush=True)


if __name__ == "__main__":
    main()
