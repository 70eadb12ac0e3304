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
import signal
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand import __version__
from blockexpand.checkpoint import locate_model
from blockexpand.corpus import open_corpus
from blockexpand.digests import digest_json
from blockexpand.errors import Interrupted, Preempted, TrainingError
from blockexpand.live.attention import set_attention
from blockexpand.live.device import describe_device, peak_bytes, training_dtype
from blockexpand.progress import bar, progress_in, progress_mode
from blockexpand.records import (
    from_plain,
    read_json,
    read_record,
    to_plain,
    write_json,
    write_record,
)
from blockexpand.records.run import Measurement, RunRecord, TrainSettings, read_metrics
from blockexpand.staging import RECORD_NAME
from blockexpand.training.arms import Trainee, arm_of, load_model
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
from blockexpand.training.data import RunData, open_data
from blockexpand.training.export import export_model, prove_unchanged
from blockexpand.training.loop import Loop
from blockexpand.training.memory import check_fits
from blockexpand.training.metrics import SilentTracker, Tracker, check_boards, open_boards
from blockexpand.training.processes import Root, fill, join_world, names_to_fill, shard
from blockexpand.training.self_text import write_self_text

_FREE = ("out", "keep_checkpoints", "track")
"""Settings that may change between a run's parts."""


def train(settings: TrainSettings, resume: bool = False, device: str = "auto") -> RunRecord:
    """Run the settings to their end.

    Args:
        settings: The run.
        resume: Go on from the newest checkpoint in `settings.out`, or start when there is none.
        device: Where to run: the accelerator that torch finds, if there is one, or e.g. "cpu".

    Raises:
        TrainingError: the output is taken, or the settings are not those the run began with.
        CorpusError: the data cannot be opened.
        Interrupted: a signal came; what was done is saved. `Preempted`, when it was SIGTERM.
    """
    settings = dataclasses.replace(settings, model=str(locate_model(settings.model)))
    with join_world(device) as world, progress_in(progress_mode() if world.leads else "silent"):
        out = Path(settings.out)
        world.first(lambda: _claim(out, settings, run_digest(settings), resume))
        check_boards(settings.track)
        check_fits(settings, world)
        torch.manual_seed(settings.seed)
        world.first(lambda: write_self_text(settings, world.device))
        data = open_data(settings, world)
        trainee, root = _load(settings, data)
        loop = Loop(settings, trainee, data, out, root)
        try:
            progress = _run(loop, resume)
            shipped, kept, best = loop.shipped(progress)
            record = dataclasses.replace(_record(settings, loop, progress), best=best, kept=kept)
            world.first(lambda: _ship(settings, loop, record, shipped))
        finally:
            loop.close()
        return read_record(RunRecord, out / RECORD_NAME)


def _load(settings: TrainSettings, data: RunData) -> tuple[Trainee, nn.Module]:
    """The trainee, and the module that all its passes go through; of several processes each reads its part."""
    world, folder = data.world, Path(settings.model)
    dtype = training_dtype(settings.precision, folder, world.device)
    needs_reference = settings.retention.kl_weight > 0
    arm = arm_of(settings.arm, settings.base_precision)
    trainee = arm.load(folder, dtype, needs_reference, empty=world.mesh is not None)
    _check_sizes(trainee.model, data, settings)
    set_attention(trainee.model, settings.attention, world.device)
    if settings.compile_blocks:
        compile_blocks(trainee.model)
    recompute_blocks(trainee.model, settings.recompute)
    if world.mesh is None:
        return trainee, nn.Module.to(Root(trainee.model, *trainee.others), world.device)
    names = [names_to_fill(model) for model in (trainee.model, *trainee.others)]
    trainee, root = shard(trainee, world.mesh, world.device, dtype)
    for model, own in zip((trainee.model, *trainee.others), names, strict=True):
        fill(model, own, folder)
    return trainee, root


def _run(loop: Loop, resume: bool) -> Progress:
    """Do the steps there are to do.

    Raises:
        Interrupted: a signal came, and the rest is left.
    """
    settings, world, out = loop.settings, loop.world, loop.run_folder
    checkpoint = newest_checkpoint(out) if resume else None
    progress = Progress(step=0, settings_digest=run_digest(settings))
    if checkpoint is not None:
        progress = loop.restore(checkpoint)
    world.wait()  # all have found the same checkpoint before anything is removed or written
    if world.leads:
        remove_unfinished(out)
    tracker: Tracker = SilentTracker()
    if world.leads:
        tracker = Tracker(out, progress.step, open_boards(settings.track, out, progress.step, to_plain(settings)))
    title = f"{settings.arm.kind} lr {settings.optimizer.lr:g}"
    try:
        remaining = (loop.num_steps - progress.step) * settings.rows_per_step * loop.data.domain.row_tokens
        with _signals() as stopping, bar(title, remaining, "tokens") as live:
            progress = loop.run(progress, tracker, live, stopping)
    finally:
        tracker.close()
    if progress.step < loop.num_steps:
        kind = Preempted if signal.SIGTERM in stopping else Interrupted
        raise kind(f"stopped at step {progress.step} of {loop.num_steps}; resume with --resume")
    return progress


def _ship(settings: TrainSettings, loop: Loop, record: RunRecord, tensors: dict[str, Tensor]) -> None:
    """Write the model and, last, the run's record."""
    source, out = Path(settings.model), Path(settings.out)
    training = {"settings_digest": run_digest(settings), "arm": settings.arm.kind, "blockexpand_version": __version__}
    if not loop.trainee.exportable:
        save_tensors(out / SHIPPED, tensors)
        write_record(out / RECORD_NAME, record)
        return
    export_model(source, out / "model", tensors, training)
    num_unchanged = prove_unchanged(source, out / "model", tensors)
    counts = {"num_trained_tensors": len(tensors), "num_unchanged_tensors": num_unchanged}
    write_record(out / RECORD_NAME, dataclasses.replace(record, **counts))


def run_digest(settings: TrainSettings) -> str:
    """What makes a run the same run: every setting but where it is put, shown, and how often it is saved."""
    plain = to_plain(settings)
    return digest_json({k: v for k, v in plain.items() if k not in _FREE})


def _claim(out: Path, settings: TrainSettings, digest: str, resume: bool) -> None:
    """Refuse a folder that holds another run; write down the settings of this one."""
    path = out / "settings.json"
    if path.is_file():
        if not resume:
            raise TrainingError(f"{out} already holds a run; add --resume to go on with it, or choose another `out`")
        before = from_plain(TrainSettings, read_json(path), str(path))
        if run_digest(before) != digest:
            raise TrainingError(f"{out} was begun with other settings: {difference(before, settings)}; restore them")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} exists and is not a run folder; choose another `out`")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def difference(before: Any, after: Any, path: str = "") -> str:
    """The first setting that differs, e.g. `optimizer.lr was 0.001, is 0.002`."""
    old, new = to_plain(before), to_plain(after)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key) and f"{path}{key}" not in _FREE:
                return difference(old.get(key), new.get(key), f"{path}{key}.")
    return f"{path.rstrip('.')} was {old!r}, is {new!r}"


def _check_sizes(model: PreTrainedModel, data: RunData, settings: TrainSettings) -> None:
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if data.largest_token >= embeddings:
        raise TrainingError(
            f"the tokenizer does not fit the model: the data hold token {data.largest_token}, and {settings.model} has "
            f"embeddings for {embeddings}; use the tokenizer the model was trained with"
        )
    positions = model.config.max_position_embeddings
    if data.domain.row_tokens > positions:
        raise TrainingError(
            f"rows of {data.domain.row_tokens} tokens are longer than the {positions} positions of {settings.model}; "
            "prepare the data with fewer row_tokens"
        )


@contextlib.contextmanager
def _signals() -> Generator[list[int]]:
    """A list that receives SIGINT and SIGTERM, so that a step is finished and saved before the end."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if received:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(settings: TrainSettings, loop: Loop, progress: Progress) -> RunRecord:
    import transformers

    num_tokens = loop.num_steps * settings.rows_per_step * loop.data.domain.row_tokens
    metrics = read_metrics(Path(settings.out) / "metrics.jsonl")
    first = next((row for row in metrics if row["kind"] == "measure"), None)
    base = None
    if first is not None:
        base = Measurement(step=0, domain=first["domain"], general=first["general"], rise=first["rise"])
    return RunRecord(
        blockexpand_version=__version__,
        settings=settings,
        settings_digest=run_digest(settings),
        num_steps=loop.num_steps,
        num_tokens=num_tokens,
        num_trainable_parameters=sum(p.numel() for p in loop.trainee.trainable.values()),
        num_parameters=sum(p.numel() for p in loop.trainee.model.parameters()),
        best=progress.best,
        base=base,
        train_seconds=round(progress.train_seconds, 3),
        cpu_seconds=round(progress.cpu_seconds, 3),
        exported=loop.trainee.exportable,
        tokens_per_second=round(num_tokens / max(progress.train_seconds, 1e-9), 1),
        peak_memory_bytes=peak_bytes(loop.world.device),
        num_skipped_steps=progress.num_skipped_in_all,
        num_processes=loop.world.size,
        machine=describe_device(loop.world.device),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def sft(settings: TrainSettings, resume: bool = False, device: str = "auto") -> RunRecord:
    """Instruction-tune: the same loop on conversations, of which only the assistant's turns are trained.

    Raises:
        TrainingError: the data are no conversations; and what `train` raises.
    """
    corpus = open_corpus(settings.data.domain)
    if not corpus.record.conversations:
        raise TrainingError(
            f"{settings.data.domain} holds plain text, not conversations; prepare it from a `chat` source, or use "
            "`train`"
        )
    return train(settings, resume, device)


def shipped_folder(run: Path) -> Path:
    """The folder of the checkpoint that a run gave.

    Raises:
        TrainingError: the run is not finished, or no checkpoint of the family can hold what it trained.
    """
    record = _finished(run)
    if not record.exported:
        raise TrainingError(
            f"{run} trained the arm {record.settings.arm.kind!r}, which no checkpoint of the family can hold; expected "
            "an arm that can be exported (blocks, old-blocks, full, lora, moe, upscaled); `compare` measures this one"
        )
    return run / "model"


def load_shipped(run: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model that a run gave, frozen, in eval mode: what its checkpoint holds, or what was kept instead.

    Raises:
        TrainingError: the run is not finished, or what it kept is damaged.
        LiveError: the checkpoint cannot be loaded.
    """
    record = _finished(run)
    if record.exported:
        return load_model(run / "model", dtype)
    trainee = arm_of(record.settings.arm).load(Path(record.settings.model), dtype, needs_reference=False)
    restore_trainable(trainee.trainable, SavedTensors(run / SHIPPED))
    trainee.model.requires_grad_(False)
    return trainee.model


def _finished(run: Path) -> RunRecord:
    if not (run / RECORD_NAME).is_file():
        raise TrainingError(
            f"{run} is no finished run: it has no {RECORD_NAME}; expected a run's folder; train it first"
        )
    return read_record(RunRecord, run / RECORD_NAME)
