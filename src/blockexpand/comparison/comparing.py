"""`compare`: a recipe of arms into finished runs, their figures and `comparison.json`.

Every run is a process of its own, so its peak memory is its own, and two comparisons may run side by
side. A run that is finished is not run again; one that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from blockexpand.comparison.caching import alone, bring, in_cache
from blockexpand.comparison.examining import examine
from blockexpand.comparison.growing import grown
from blockexpand.comparison.recipe import CompareRecipe, TrialPlan, trial_plans
from blockexpand.comparison.results import Comparison, Trial, summarise
from blockexpand.digests import digest_file
from blockexpand.errors import ComparisonError
from blockexpand.evaluation.measurement import Subject, evaluate
from blockexpand.progress import Mode, bar, progress_in, progress_mode
from blockexpand.records import apply_overrides, from_plain, read_record, read_yaml, write_record
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.run import CustomArm, Measurement, RunRecord, TrainSettings, read_metrics
from blockexpand.staging import RECORD_NAME
from blockexpand.training import Arm, load_shipped, shipped_folder, train
from blockexpand.training.checkpoints import SHIPPED
from blockexpand.training.run import run_digest


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> CompareRecipe:
    """The comparison of a YAML recipe with `key=value` overrides applied.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    return from_plain(CompareRecipe, apply_overrides(read_yaml(path), list(overrides)), str(path))


Arms = Mapping[str, Callable[..., Arm]]
"""What makes each arm of the caller's own, by its name, from the options that the recipe gives it."""


def compare(recipe: CompareRecipe, workers: int = 1, arms: Arms | None = None) -> Comparison:
    """Run every trial that is not finished yet, and sum up.

    Args:
        recipe: The comparison.
        workers: Runs at a time; the processor's cores are shared out among them.
        arms: What makes the arms that are not ours, e.g. {"moe": Moe}; a class, so that other processes can have it.

    Raises:
        ComparisonError: the arms are not equal, or a run failed.
    """
    out = Path(recipe.out)
    data = {"domain": recipe.data.domain}
    if recipe.data.general is None:
        raise ComparisonError("data.general is missing: without general text there is no forgetting to measure")
    data["general"] = recipe.data.general
    out.mkdir(parents=True, exist_ok=True)
    shared = Path(recipe.runs) if recipe.runs is not None else None
    models = grown(recipe, shared or out)
    plans = trial_plans(recipe, models, out / "runs")
    if shared is not None:
        plans = [in_cache(plan, shared / "runs") for plan in plans]
    if not (out / "base-eval" / RECORD_NAME).is_file():
        evaluate(recipe.base, data, out / "base-eval", split=recipe.test_split)
    waiting = [plan for plan in plans if not _is_finished(plan)]
    _run_all(waiting, data, (recipe.test_split, workers), arms or {})
    for plan in plans:
        bring(plan)
    comparison = summarise(recipe, [_trial(plan, out) for plan in plans], out)
    write_record(out / "comparison.json", comparison)
    if recipe.examine is not None:
        examine(comparison, out, arms or {})
    return comparison


def _is_finished(plan: TrialPlan) -> bool:
    """Whether the run is there, whole, evaluated, and of these very settings."""
    for run in {plan.run, Path(plan.settings.out)}:
        if not (run / RECORD_NAME).is_file() or not (run / "eval" / RECORD_NAME).is_file():
            continue
        record = read_record(RunRecord, run / RECORD_NAME)
        if record.settings_digest != run_digest(plan.settings):
            raise ComparisonError(
                f"{run} holds a run of other settings than this recipe asks for; choose another `out`, or remove it"
            )
        return True
    return False


def _run_all(plans: Sequence[TrialPlan], data: dict[str, str], how: tuple[str, int], arms: Arms) -> None:
    split, workers = how
    if not plans:
        return
    # A fork server that has imported torch once: each run starts in a tenth of a second, in a process of
    # its own that has not yet used threads (a plain fork of a process that has may hang in OpenMP).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["blockexpand.training.run", "blockexpand.evaluation", "transformers"])
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    mode = progress_mode()
    # One run at a time shows its own bar; several would write over each other, so only their count shows.
    mode_of_run: Mode = mode if workers == 1 else "silent"
    with (
        progress_in("silent" if workers == 1 else mode),
        bar("runs", len(plans), "runs") as overall,
        ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        jobs = [
            pool.submit(_run_one, plan, data, split, (threads, mode_of_run), made_arm(plan.settings, arms))
            for plan in plans
        ]
        try:
            for plan, job in zip(plans, jobs, strict=True):
                job.result()
                overall.advance(1, plan.arm)
        except BrokenProcessPool:
            raise ComparisonError(
                "a run's process was killed (out of memory?); run compare again to go on, with fewer workers"
            ) from None
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


def _stop_with_parent() -> None:
    """Stop this run when the comparison is gone: killed, it cannot say so, and its runs would go on unwatched."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a run is a child of its comparison"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # which the run takes as Ctrl-C: it saves first


def made_arm(settings: TrainSettings, arms: Arms) -> Arm | None:
    """The arm of the caller's own that the settings name; None for ours.

    Raises:
        ComparisonError: it was not given.
    """
    if not isinstance(settings.arm, CustomArm):
        return None
    if settings.arm.name not in arms:
        raise ComparisonError(
            f"the arm {settings.arm.name!r} is not one of ours; expected it among those given to compare "
            f"({', '.join(sorted(arms)) or 'none'}); call compare(recipe, arms={{{settings.arm.name!r}: ...}})"
        )
    return arms[settings.arm.name](**settings.arm.options)


def _run_one(plan: TrialPlan, data: dict[str, str], split: str, process: tuple[int, Mode], arm: Arm | None) -> None:
    """In a process of its own, with so many threads and progress shown so: train, then measure."""
    import torch

    threading.Thread(target=_stop_with_parent, daemon=True).start()
    threads, mode = process
    torch.set_num_threads(threads)
    run = Path(plan.settings.out)
    with progress_in(mode), alone(run):
        if not (run / RECORD_NAME).is_file():
            train(plan.settings, resume=True, arm=arm)
        if not (run / "eval" / RECORD_NAME).is_file():
            evaluate(_subject(run, arm), data, run / "eval", split=split)


def _subject(run: Path, arm: Arm | None) -> Path | Subject:
    """What a run gave, to be measured: its checkpoint's folder, or the model where no checkpoint can hold it."""
    record = read_record(RunRecord, run / RECORD_NAME)
    if record.exported:
        return shipped_folder(run)
    return Subject(
        name=str(run),
        tokenizer=Path(record.settings.model),
        digest=lambda: digest_file(run / SHIPPED),
        load=lambda: load_shipped(run, arm=arm),
    )


def _trial(plan: TrialPlan, out: Path) -> Trial:
    run = plan.run
    record = read_record(RunRecord, run / RECORD_NAME)
    assert record.best is not None, f"{run} was not measured"
    fields = {field.name for field in dataclasses.fields(Measurement)}
    metrics = read_metrics(run / "metrics.jsonl")
    curve = tuple(
        Measurement(**{key: value for key, value in row.items() if key in fields})
        for row in metrics
        if row["kind"] == "measure"
    )
    losses = [row["domain_loss"] for row in metrics if row["kind"] == "train"]
    last = losses[-max(1, len(losses) // 4) :]
    return Trial(
        arm=plan.arm,
        lr=plan.lr,
        seed=plan.seed,
        run=str(run.relative_to(out)),
        steering=record.best,
        curve=curve,
        held_out=read_evaluation(run / "eval").record.held_out,
        num_trainable_parameters=record.num_trainable_parameters,
        tokens_per_second=record.tokens_per_second,
        peak_memory_bytes=record.peak_memory_bytes,
        train_seconds=record.train_seconds,
        cpu_seconds=record.cpu_seconds,
        training_loss=sum(last) / len(last) if last else None,
    )
