"""The verbs that measure and tell: eval, compare, report, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.evaluation import EvaluationRecord


def _named(pairs: list[str]) -> dict[str, str]:
    named = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--data {pair!r} is not name=folder; expected e.g. --data general=data/general")
        named[name] = folder
    return named


def evaluate(
    model: Path,
    *,
    out: Path,
    data: Annotated[list[str] | None, Parameter(negative="")] = None,
    tasks: Path | None = None,
    split: str = "test",
    against: Path | None = None,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Measure held-out losses and tasks with checkable answers.

    Parameters
    ----------
    model
        The folder of a checkpoint.
    out
        The folder of records to write.
    data
        Prepared folders as name=folder; may be given several times.
    tasks
        JSON lines of task, prompt and answer, asked through the chat template.
    split
        Which split of the prepared folders.
    against
        A folder of records of another model, to show the paired differences to.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand import evaluation

    questions = evaluation.load_tasks(tasks) if tasks is not None else None
    record = evaluation.evaluate(model, _named(data or []), out, tasks=questions, split=split, overwrite=overwrite)
    differences = evaluation.differences(out, against) if against is not None else {}
    value = {"evaluation": record, "differences": differences} if against is not None else record
    show(common, value, _figures(record) + _difference_lines(differences))
    return DONE


def _figures(record: EvaluationRecord) -> str:
    lines = [f"{record.model}"]
    for name, one in record.held_out.items():
        lines.append(
            f"  {name:<12} {one.loss:.4f} nats/token  perplexity {one.perplexity:,.2f}  {one.bits_per_byte:.4f} "
            f"bits/byte  ({one.num_documents:,} documents)"
        )
    if record.answers is not None:
        lines.append(f"  answers      {record.answers.right:.1%} of {record.answers.num_samples} right")
        lines += [f"    {task:<14} {share:.1%}" for task, share in record.answers.by_task.items()]
    return "\n".join(lines)


def _difference_lines(differences: dict) -> str:
    lines = []
    for name, interval in differences.items():
        verdict = "  (noise)" if interval.is_noise else ""
        lines.append(f"\n  {name}: {interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]{verdict}")
    return ("\nthis model minus the other, with 95 % intervals:" + "".join(lines)) if lines else ""


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
        Folders that compare, eval, train, expand or prepare wrote.
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
