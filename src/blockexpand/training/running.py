"""`train` and `sft`: settings into a run folder, and a finished run into a plain Hugging Face folder.

The folder: `blockexpand.json` (the record, written last), `settings.json`, `metrics.jsonl`,
`tensorboard/`, `checkpoints/` (what trains only), `model/` (the checkpoint to ship). A run that was
killed goes on with `resume`; Ctrl-C and SIGTERM save first. Under torchrun all processes do this together:
the first one writes records, metrics and the model, each its part of the checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import resource
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand import __version__
from blockexpand.checkpoint import locate_model
from blockexpand.corpus import open_corpus
from blockexpand.digests import digest_json
from blockexpand.errors import Interrupted, Preempted, RecordError, TrainingError
from blockexpand.live.attention import set_attention
from blockexpand.progress import bar, progress_in, progress_mode
from blockexpand.records import (
    apply_overrides,
    from_plain,
    read_json,
    read_record,
    read_yaml,
    to_plain,
    write_json,
    write_record,
)
from blockexpand.staging import RECORD_NAME
from blockexpand.training.arms.build import arm_of
from blockexpand.training.arms.trainee import Trainee
from blockexpand.training.boards import check_boards, open_boards
from blockexpand.training.checkpoints import SHIPPED, Progress, newest_checkpoint, remove_unfinished, save_tensors
from blockexpand.training.computation import compile_blocks, recompute_blocks
from blockexpand.training.data import RunData, open_data
from blockexpand.training.export import export_model
from blockexpand.training.filling import fill, names_to_fill
from blockexpand.training.fitting import check_fits
from blockexpand.training.loop import Loop
from blockexpand.training.proving import prove_unchanged
from blockexpand.training.retention import Measurement
from blockexpand.training.self_text import write_self_text
from blockexpand.training.settings import TrainSettings
from blockexpand.training.sharding import Root, shard
from blockexpand.training.tracker import SilentTracker, Tracker, read_metrics
from blockexpand.training.world import join_world

_FREE = ("out", "keep_checkpoints", "track")
"""Settings that may change between a run's parts."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a finished run was and gave; saved as the run folder's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.run"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    settings: TrainSettings
    settings_digest: str
    num_steps: int
    num_tokens: int
    """Positions trained on, domain and general, padding included."""
    num_trainable_parameters: int
    num_parameters: int
    best: Measurement | None
    """Held-out losses of the checkpoint in `model/`, on the steering sample."""
    base: Measurement | None
    """The same of the model as it was loaded."""
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    """Largest resident memory of the process (on CUDA: largest allocation on the device)."""
    machine: str
    versions: dict[str, str]
    num_trained_tensors: int | None = None
    """Tensors of the checkpoint that trained (None: recorded by an earlier version)."""
    num_unchanged_tensors: int | None = None
    """All its other tensors, each compared and found the same in `model/`, byte for byte."""
    num_skipped_steps: int = 0
    """Steps left out because their loss was not finite."""
    num_processes: int = 1
    """How many processes ended the run; the largest memory is the first one's."""
    cpu_seconds: float | None = None
    """Processor time of the steps, all threads of the first process together (None: recorded by an earlier version)."""
    exported: bool = True
    """Whether `model/` is a checkpoint; if not, no checkpoint of the family could hold it: see `load_shipped`."""


def train(settings: TrainSettings, resume: bool = False) -> RunRecord:
    """Run the settings to their end.

    Args:
        settings: The run.
        resume: Go on from the newest checkpoint in `settings.out`, or start when there is none.

    Raises:
        TrainingError: the output is taken, or the settings are not those the run began with.
        CorpusError: the data cannot be opened.
        Interrupted: a signal came; what was done is saved. `Preempted`, when it was SIGTERM.
    """
    settings = dataclasses.replace(settings, model=str(locate_model(settings.model)))
    with join_world() as world, progress_in(progress_mode() if world.leads else "silent"):
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
            shipped = loop.shipped(progress)
            world.first(lambda: _ship(settings, loop, progress, shipped))
        finally:
            loop.close()
        return read_record(RunRecord, out / RECORD_NAME)


def _load(settings: TrainSettings, data: RunData) -> tuple[Trainee, nn.Module]:
    """The trainee, and the module that all its passes go through; of several processes each reads its part."""
    world, folder, dtype = data.world, Path(settings.model), _DTYPES[settings.precision]
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


def _ship(settings: TrainSettings, loop: Loop, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write the model and, last, the run's record."""
    source, out = Path(settings.model), Path(settings.out)
    training = {"settings_digest": run_digest(settings), "arm": settings.arm.kind, "blockexpand_version": __version__}
    if not loop.trainee.exportable:
        save_tensors(out / SHIPPED, tensors)
        write_record(out / RECORD_NAME, _record(settings, loop, progress))
        return
    export_model(source, out / "model", tensors, training)
    num_unchanged = prove_unchanged(source, out / "model", tensors)
    counts = {"num_trained_tensors": len(tensors), "num_unchanged_tensors": num_unchanged}
    write_record(out / RECORD_NAME, dataclasses.replace(_record(settings, loop, progress), **counts))


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
        peak_memory_bytes=_peak_memory_bytes(),
        num_skipped_steps=progress.num_skipped_in_all,
        num_processes=loop.world.size,
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sft(settings: TrainSettings, resume: bool = False) -> RunRecord:
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
    return train(settings, resume)


def load_settings(path: Path, overrides: Sequence[str] = (), default_arm: str | None = None) -> TrainSettings:
    """The settings of a YAML recipe with `key=value` overrides applied.

    Args:
        path: The recipe.
        overrides: Settings that replace the recipe's.
        default_arm: The arm of a recipe that names none.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecordError(f"{path} holds {type(data).__name__}; expected a mapping of settings")
    if default_arm is not None:
        data = {"arm": {"kind": default_arm}, **data}
    return from_plain(TrainSettings, apply_overrides(data, list(overrides)), str(path))
