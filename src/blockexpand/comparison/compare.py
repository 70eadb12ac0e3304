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

from blockexpand.checkpoint.source import locate_model
from blockexpand.comparison.summary import summarise
from blockexpand.comparison.trials import TrialPlan, alone, bring, grown, in_cache, trial_plans
from blockexpand.corpus import open_corpus
from blockexpand.digests import digest_file
from blockexpand.errors import ComparisonError
from blockexpand.evaluation.measurement import Subject, evaluate, model_digest
from blockexpand.progress import Mode, bar, progress_in, progress_mode
from blockexpand.records import apply_overrides, from_plain, read_record, read_yaml, write_record
from blockexpand.records.comparison import COMPARISON_NAME, CompareRecipe, Comparison, Trial
from blockexpand.records.evaluation import EvaluationRecord, read_evaluation
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
        ComparisonError: a run failed, or a folder holds runs of something else.
    """
    recipe = dataclasses.replace(recipe, base=str(locate_model(recipe.base)))
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
    _measure_base(Path(recipe.base), data, recipe.test_split, out)
    waiting = [plan for plan in plans if not _is_finished(plan, data, recipe.test_split)]
    _run_all(waiting, data, (recipe.test_split, workers), arms or {})
    for plan in plans:
        bring(plan)
    comparison = summarise(recipe, [_trial(plan, out) for plan in plans], out)
    write_record(out / COMPARISON_NAME, comparison)
    return comparison


def _measure_base(base: Path, data: Mapping[str, str], split: str, out: Path) -> None:
    """The base's losses on the test documents, measured again where the base or the documents are others now."""
    folder = out / "base-eval"
    if _is_measured(folder, data, split) and read_evaluation(folder).record.model_digest == model_digest(base):
        return
    evaluate(base, data, folder, split=split, overwrite=folder.exists())


def _is_measured(folder: Path, data: Mapping[str, str], split: str) -> bool:
    """Whether the folder has losses on these very documents."""
    if not (folder / RECORD_NAME).is_file():
        return False
    wanted = {name: open_corpus(text).record.splits[split].digest for name, text in data.items()}
    return read_record(EvaluationRecord, folder / RECORD_NAME).corpora == wanted


def _is_finished(plan: TrialPlan, data: Mapping[str, str], split: str) -> bool:
    """Whether the run is there, whole, evaluated on these documents, and of these very settings and contents."""
    for run in {plan.run, Path(plan.settings.out)}:
        if not (run / RECORD_NAME).is_file() or not _is_measured(run / "eval", data, split):
            continue
        record = read_record(RunRecord, run / RECORD_NAME)
        if record.settings_digest != run_digest(plan.settings):
            raise ComparisonError(
                f"{run} holds a run of other settings, or of another base or texts, than this recipe asks for; choose "
                "another `out`, or remove it"
            )
        return True
    return False


def _run_all(plans: Sequence[TrialPlan], data: dict[str, str], how: tuple[str, int], arms: Arms) -> None:
    split, workers = how
    if not plans:
        return
    # A fork server that has imported torch once: each run starts in a tenth of a second, in a process of
    # its own that has not yet used threads (a plain fork of a process that has may hang in OpenMP).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait take the neighbours' cores
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
        if not _is_measured(run / "eval", data, split):
            evaluate(_subject(run, arm), data, run / "eval", split=split, overwrite=(run / "eval").exists())


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
        load=record.load,
        kept_nothing=record.nothing_inside_budget,
        training_loss=sum(last) / len(last) if last else None,
    )
