"""`train`: settings into a run folder, and a finished run into a plain Hugging Face folder.

The folder: `blockexpand.json` (the record, written last), `settings.json`, `metrics.jsonl`, `tensorboard/`,
`checkpoints/` (what trains only), `model/` (the checkpoint to ship), or `shipped.safetensors` where no checkpoint of
the family can hold what trained. A run that was killed goes on with `resume`; Ctrl-C and SIGTERM save first. Under
torchrun all processes do this together: the first one writes records, metrics and the model, each its part of the
checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from blockexpand import __version__
from blockexpand.checkpoint import digest_tensors, end_of_turn, locate_model, open_checkpoint
from blockexpand.corpus import open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import Interrupted, Preempted, TrainingError
from blockexpand.live.attention import set_attention
from blockexpand.live.device import describe_device, memory_told, peak_bytes, training_dtype
from blockexpand.progress import bar, progress_in, progress_mode, say
from blockexpand.records import read_record, to_plain, write_record
from blockexpand.records.run import SELF, Measurement, RunContents, RunRecord, RunStart, TrainSettings, read_metrics
from blockexpand.staging import RECORD_NAME
from blockexpand.training.arms import Arm, Trainee, arm_of, load_model
from blockexpand.training.checkpoints import (
    SHIPPED,
    Progress,
    SavedTensors,
    newest_checkpoint,
    remove_unfinished,
    restore_trainable,
    save_tensors,
)
from blockexpand.training.computation import compile_blocks, recompute_blocks
from blockexpand.training.data import SELF_TEXT, RunData, general_folders, open_data
from blockexpand.training.export import export_model, prove_unchanged
from blockexpand.training.loop import Loop, Shipped
from blockexpand.training.metrics import SilentTracker, Tracker, open_boards
from blockexpand.training.preview import RunTakes, check_fits, check_run, rows_of_pass, rows_that_fit
from blockexpand.training.processes import Root, World, fill, join_world, names_to_fill, shard
from blockexpand.training.self_text import write_self_text

__all__ = ["RunTakes", "check_run", "load_shipped", "run_digest", "shipped_folder", "train"]

_SETTINGS = "settings.json"
_FREE = ("out", "keep_checkpoints", "track", "rows_per_pass", "checkpoint_every_steps")
"""Settings that may change between a run's parts: where it is put, shown, how often it is saved, and how many rows a
pass takes (the same step up to rounding)."""


_PREPARED = "work"
"""Where `learn` keeps, in the run's folder, what it has prepared for the run."""


def train(settings: TrainSettings, resume: bool = False, device: str = "auto", arm: Arm | None = None) -> RunRecord:
    """Run the settings to their end. A run that has ended already is given back as it is.

    Args:
        settings: The run.
        resume: Go on from the newest checkpoint in `settings.out`, or start when there is none.
        device: Where to run: the accelerator that torch finds, if there is one, or e.g. "cpu".
        arm: A method of the caller's own, where `settings.arm` is a `CustomArm`.

    Raises:
        TrainingError: the output is taken, or settings or contents are not those the run began with.
        CorpusError: the data cannot be opened.
        DeviceError: the device is not there, or has too little memory.
        Interrupted: a signal came; what was done is saved. `Preempted`, when it was SIGTERM.
    """
    settings = dataclasses.replace(settings, model=str(locate_model(settings.model)))
    out = Path(settings.out)
    with join_world(device) as world, progress_in(progress_mode() if world.leads else "silent"):
        method = arm or arm_of(settings.arm, settings.base_precision)
        start = world.first(lambda: _checked(settings, resume, world))
        if world.total([float(start is not None and _is_finished(out))])[0]:
            return read_record(RunRecord, out / RECORD_NAME)
        torch.manual_seed(settings.seed)
        world.first(lambda: write_self_text(settings, world.device))
        data = open_data(settings, world)
        with memory_told(f"loading {settings.model}", world.device, "set base_precision, or take a smaller model"):
            trainee, root = _load(settings, method, data)
        loop = Loop(settings, trainee, data, out, root)
        try:
            world.first(lambda: _write_start(out, start))
            with memory_told(f"a pass of {rows_of_pass(settings)} rows", world.device, _advice(settings, data)):
                progress = _run(loop, resume)
                shipped = loop.shipped(progress)
            world.first(lambda: _ship(start, loop, progress, shipped))
        finally:
            loop.close()
        return read_record(RunRecord, out / RECORD_NAME)


# --- before the first step -------------------------------------------------------------------------------


def _checked(settings: TrainSettings, resume: bool, world: World) -> RunStart:
    """Refuse what cannot be run, before anything is written or loaded; what the run begins, or began, with."""
    out = Path(settings.out)
    _check_free(out, resume)
    takes = check_run(settings, world.size)
    check_fits(settings, world)
    start = RunStart(settings=settings, contents=contents_of(settings))
    if (out / _SETTINGS).is_file():
        _check_same(out, start)
    elif (out / SELF_TEXT).is_dir():
        shutil.rmtree(out / SELF_TEXT)  # of a run that was refused or killed before its first step
    if not _is_finished(out):
        for warning in takes.warnings:
            say(f"  note: {warning}")
    return start


def _check_free(out: Path, resume: bool) -> None:
    """Refuse a folder that holds another run, or something else."""
    if (out / _SETTINGS).is_file():
        if not resume:
            raise TrainingError(f"{out} already holds a run; add --resume to go on with it, or choose another `out`")
        return
    others = [] if not out.exists() else ["a file"] if not out.is_dir() else [path.name for path in out.iterdir()]
    others = [name for name in others if SELF_TEXT not in name and name != _PREPARED]
    if others:
        raise TrainingError(
            f"{out} exists and is not a run folder (it holds {min(others)}); expected a new one; choose another `out`"
        )


def contents_of(settings: TrainSettings) -> RunContents:
    """Digests of the model and the data that the settings name; every byte of the model is read."""
    checkpoint = open_checkpoint(settings.model)
    tensors = {name: found.digest for name, found in digest_tensors(checkpoint).items()}
    general = {kind: digest_file(folder / RECORD_NAME) for kind, folder in general_folders(settings).items()}
    return RunContents(
        model=digest_json({"config": checkpoint.config, "tensors": tensors}),
        domain=digest_file(Path(settings.data.domain) / RECORD_NAME),
        general=general,
    )


def run_digest(settings: TrainSettings, contents: RunContents | None = None) -> str:
    """What makes a run the same run: what it was given, by contents and not by names, and every setting but where it
    is put, shown, how often it is saved, and in how many passes a step is taken.

    `contents` are read from the files if not given.
    """
    plain = {key: value for key, value in to_plain(settings).items() if key not in _FREE}
    plain["model"] = None
    plain["data"] = {**plain["data"], "domain": None, "more_general": None}
    plain["data"]["general"] = settings.general and settings.general == SELF
    return digest_json([plain, to_plain(contents or contents_of(settings))])


def _check_same(out: Path, now: RunStart) -> None:
    before = read_record(RunStart, out / _SETTINGS)
    if run_digest(before.settings, before.contents) == run_digest(now.settings, now.contents):
        return
    for what, folder in (
        ("model", now.settings.model),
        ("domain", now.settings.data.domain),
        ("general", now.settings.general),
    ):
        was, now_is = (vars(contents)[what] for contents in (before.contents, now.contents))
        if was != now_is:
            raise TrainingError(
                f"{out} was begun with other contents of {what}: {folder} has changed since ({str(was)[:19]}... is now "
                f"{str(now_is)[:19]}...); restore it, or choose another `out`"
            )
    raise TrainingError(
        f"{out} was begun with other settings: {difference(before.settings, now.settings)}; restore them, or choose "
        "another `out`"
    )


def difference(before: Any, after: Any, path: str = "") -> str:
    """The first setting that differs, e.g. `optimizer.lr was 0.001, is 0.002`."""
    old, new = to_plain(before), to_plain(after)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key) and f"{path}{key}" not in (*_FREE, "model"):
                return difference(old.get(key), new.get(key), f"{path}{key}.")
    return f"{path.rstrip('.')} was {old!r}, is {new!r}"


def _is_finished(out: Path) -> bool:
    """Whether a run has ended and what it gave is there.

    Raises:
        TrainingError: it has ended, and what it gave was removed, with nothing to make it again from.
    """
    if not (out / RECORD_NAME).is_file():
        return False
    record = read_record(RunRecord, out / RECORD_NAME)
    if (out / ("model" if record.exported else SHIPPED)).exists():
        return True
    if newest_checkpoint(out) is None:
        raise TrainingError(
            f"{out} is a run that ended at step {record.num_steps}, and its model and checkpoints were removed; "
            "expected either of them; choose another `out` to train again"
        )
    return False


def _write_start(out: Path, start: RunStart | None) -> None:
    assert start is not None, "the first process has checked"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / _SETTINGS).is_file():
        write_record(out / _SETTINGS, start)


def _load(settings: TrainSettings, arm: Arm, data: RunData) -> tuple[Trainee, nn.Module]:
    """The trainee, and the module that all its passes go through; of several processes each reads its part."""
    world, folder = data.world, Path(settings.model)
    dtype = training_dtype(settings.precision, folder, world.device)
    trainee = arm.load(folder, dtype, settings.retention.needs_reference, empty=world.mesh is not None)
    set_attention(trainee.model, settings.attention, world.device)
    if settings.compile_blocks:
        compile_blocks(trainee.model)
    recompute_blocks(trainee.model, settings.recompute)
    if world.mesh is None:
        root = nn.Module.to(Root(trainee.model, *trainee.others), world.device)
        # On some devices a module gets new parameters when it is moved.
        parameters = dict(trainee.model.named_parameters(remove_duplicate=False))
        return dataclasses.replace(trainee, trainable={name: parameters[name] for name in trainee.trainable}), root
    names = [names_to_fill(model) for model in (trainee.model, *trainee.others)]
    trainee, root = shard(trainee, world.mesh, world.device, dtype)
    for model, own in zip((trainee.model, *trainee.others), names, strict=True):
        fill(model, own, folder)
    return trainee, root


def _advice(settings: TrainSettings, data: RunData) -> str:
    """What to do when a pass has not enough memory."""
    fitting = rows_that_fit(settings, data.world, data.domain.row_tokens)
    less = f"rows_per_pass={max(1, fitting or rows_of_pass(settings) // 2)}"
    again = ", recompute=from-first-new" if settings.recompute != "from-first-new" else ""
    return f"go on with --resume and {less}{again}, or prepare shorter rows"


# --- the steps, and what is left of them -----------------------------------------------------------------


def _run(loop: Loop, resume: bool) -> Progress:
    """Do the steps there are to do.

    Raises:
        Interrupted: a signal came, and the rest is left.
    """
    settings, world, out = loop.settings, loop.world, loop.run_folder
    checkpoint = newest_checkpoint(out) if resume else None
    progress = Progress(step=0)
    if checkpoint is not None:
        progress = loop.restore(checkpoint)
        say(f"  going on from step {progress.step} of {loop.num_steps}, saved in {checkpoint}")
    world.wait()  # all have found the same checkpoint before anything is removed or written
    if world.leads:
        remove_unfinished(out)
    tracker: Tracker = SilentTracker()
    if world.leads:
        tracker = Tracker(out, progress.step, open_boards(settings.track, out, progress.step, to_plain(settings)))
    title = f"{settings.arm.kind} lr {settings.optimizer.lr:g}"
    try:
        remaining = (loop.num_steps - progress.step) * settings.rows_per_step * loop.data.domain.row_tokens
        with _signals(world.leads) as stopping, bar(title, remaining, "tokens") as live:
            progress = loop.run(progress, tracker, live, stopping)
    finally:
        tracker.close()
    if progress.step < loop.num_steps:
        kind = Preempted if signal.SIGTERM in stopping else Interrupted
        saved = ", which is saved" if progress.step else ""
        raise kind(f"stopped at step {progress.step} of {loop.num_steps}{saved}; go on with --resume")
    return progress


@contextlib.contextmanager
def _signals(leads: bool) -> Generator[list[int]]:
    """A list that receives SIGINT and SIGTERM, so that a pass is finished and saved before the end."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if received:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        received.append(number)
        if leads and progress_mode() != "silent":  # not by print: a handler may come in the middle of one
            os.write(2, b"\n  stopping after this pass, and saving; once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ship(start: RunStart | None, loop: Loop, progress: Progress, shipped: Shipped) -> None:
    """Write the model and, last, the run's record."""
    assert start is not None, "the first process has checked"
    settings, out = start.settings, Path(start.settings.out)
    source, digest = Path(settings.model), run_digest(settings, start.contents)
    if not loop.trainee.exportable:
        save_tensors(out / SHIPPED, shipped.tensors)
        write_record(out / RECORD_NAME, _record(start, digest, loop, progress, shipped))
        return
    empty = shipped.kept is not None and not shipped.kept.holds
    if shipped.kept is not None:
        write_record(out / "budget.json", shipped.kept)
    training: dict[str, Any] = {"settings_digest": digest, "arm": settings.arm.kind, "blockexpand_version": __version__}
    training |= {"nothing_inside_budget": True} if empty else {}
    chats = open_corpus(settings.data.domain).record.conversations
    end = end_of_turn(load_tokenizer(source)) if chats else None
    export_model(source, out / "model", shipped.tensors, training, end)
    num_unchanged = prove_unchanged(source, out / "model", shipped.tensors)
    counts = {"num_trained_tensors": len(shipped.tensors), "num_unchanged_tensors": num_unchanged}
    write_record(out / RECORD_NAME, dataclasses.replace(_record(start, digest, loop, progress, shipped), **counts))


def _record(start: RunStart, digest: str, loop: Loop, progress: Progress, shipped: Shipped) -> RunRecord:
    import transformers

    settings = start.settings
    num_tokens = loop.num_steps * settings.rows_per_step * loop.data.domain.row_tokens
    metrics = read_metrics(Path(settings.out) / "metrics.jsonl")
    first = next((row for row in metrics if row["kind"] == "measure"), None)
    base = None
    if first is not None:
        base = Measurement(step=0, domain=first["domain"], general=first["general"], rise=first["rise"])
    seconds = max(progress.train_seconds, 1e-9)
    return RunRecord(
        blockexpand_version=__version__,
        settings=settings,
        contents=start.contents,
        settings_digest=digest,
        num_steps=loop.num_steps,
        num_tokens=num_tokens,
        num_trainable_parameters=sum(p.numel() for p in loop.trainee.trainable.values()),
        num_parameters=sum(p.numel() for p in loop.trainee.model.parameters()),
        best=shipped.best,
        base=base,
        kept=shipped.kept,
        nothing_inside_budget=shipped.kept is not None and not shipped.kept.holds,
        train_seconds=round(progress.train_seconds, 3),
        cpu_seconds=round(progress.cpu_seconds, 3),
        tokens_per_second=round(num_tokens / seconds, 1),
        load=round(progress.load_seconds / seconds, 2),
        peak_memory_bytes=peak_bytes(loop.world.device),
        machine=describe_device(loop.world.device),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        num_trained_tensors=None,
        num_unchanged_tensors=None,
        num_skipped_steps=progress.num_skipped_in_all,
        num_processes=loop.world.size,
        exported=loop.trainee.exportable,
    )


def shipped_folder(run: Path) -> Path:
    """The folder of the checkpoint that a run gave.

    Raises:
        TrainingError: the run is not finished, or no checkpoint of the family can hold what it trained.
    """
    record = _finished(run)
    if not record.exported:
        raise TrainingError(
            f"{run} trained the arm {record.settings.arm.kind!r}, which no checkpoint of the family can hold; expected "
            "an arm that can be exported; `compare` measures this one"
        )
    return run / "model"


def load_shipped(run: Path, dtype: torch.dtype | None = None, arm: Arm | None = None) -> PreTrainedModel:
    """The model that a run gave, frozen, in eval mode: what its checkpoint holds, or what was kept instead.

    Args:
        run: The run's folder.
        dtype: Of the weights; the checkpoint's own if not given.
        arm: The arm, where it was the caller's own and could not be exported.

    Raises:
        TrainingError: the run is not finished, or what it kept is damaged.
        LiveError: the checkpoint cannot be loaded.
    """
    record = _finished(run)
    if record.exported:
        return load_model(run / "model", dtype)
    folder = Path(record.settings.model)
    dtype = dtype or training_dtype("auto", folder, torch.device("cpu"))
    trainee = (arm or arm_of(record.settings.arm)).load(folder, dtype, needs_reference=False)
    restore_trainable(trainee.trainable, SavedTensors(run / SHIPPED))
    trainee.model.requires_grad_(False)
    return trainee.model


def _finished(run: Path) -> RunRecord:
    if not (run / RECORD_NAME).is_file():
        raise TrainingError(
            f"{run} is no finished run: it has no {RECORD_NAME}; expected a run's folder; train it first"
        )
    return read_record(RunRecord, run / RECORD_NAME)
