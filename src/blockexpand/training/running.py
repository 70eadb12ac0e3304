"""`train` and `sft`: settings into a run folder, and a finished run into a plain Hugging Face folder.

The folder: `blockexpand.json` (the record, written last), `settings.json`, `metrics.jsonl`,
`tensorboard/`, `checkpoints/` (what trains only), `model/` (the checkpoint to ship). A run that was
killed goes on with `resume`; Ctrl-C and SIGTERM save first.
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
from torch import nn
from transformers import PreTrainedModel

from blockexpand import __version__
from blockexpand.corpus import open_corpus
from blockexpand.digests import digest_json
from blockexpand.errors import RecordError, TrainingError
from blockexpand.numerics.attention import set_attention
from blockexpand.progress import bar
from blockexpand.records import (
    apply_overrides,
    from_plain,
    read_json,
    read_yaml,
    to_plain,
    write_json,
    write_record,
)
from blockexpand.staging import RECORD_NAME
from blockexpand.training.arms.build import arm_of
from blockexpand.training.checkpoints import Progress, newest_checkpoint
from blockexpand.training.computation import compile_blocks, recompute_blocks
from blockexpand.training.data import RunData, open_data
from blockexpand.training.export import export_model
from blockexpand.training.loop import Loop
from blockexpand.training.retention import Measurement
from blockexpand.training.self_text import write_self_text
from blockexpand.training.settings import TrainSettings
from blockexpand.training.tracker import Tracker, read_metrics

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


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after it was saved."""


def train(settings: TrainSettings, resume: bool = False) -> RunRecord:
    """Run the settings to their end.

    Args:
        settings: The run.
        resume: Go on from the newest checkpoint in `settings.out`, or start when there is none.

    Raises:
        TrainingError: the output is taken, or the settings are not those the run began with.
        CorpusError: the data cannot be opened.
        Interrupted: a signal came; what was done is saved.
    """
    out = Path(settings.out)
    digest = run_digest(settings)
    _claim(out, settings, digest, resume)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_self_text(settings, device)
    data = open_data(settings, device)
    needs_reference = settings.retention.kl_weight > 0
    trainee = arm_of(settings.arm, settings.base_precision).load(
        Path(settings.model), _DTYPES[settings.precision], needs_reference
    )
    _check_sizes(trainee.model, data, settings)
    nn.Module.to(trainee.model, device)
    set_attention(trainee.model, settings.attention, device)
    if settings.compile_blocks:
        compile_blocks(trainee.model)
    recompute_blocks(trainee.model, settings.recompute)
    loop = Loop(settings, trainee, data, out)
    progress = Progress(step=0, settings_digest=digest)
    checkpoint = newest_checkpoint(out) if resume else None
    if checkpoint is not None:
        loop.restore(checkpoint)
        progress = checkpoint.progress
    tracker = Tracker(out, progress.step)
    row_tokens = data.domain.row_tokens
    title = f"{settings.arm.kind} lr {settings.optimizer.lr:g}"
    try:
        remaining = (loop.num_steps - progress.step) * settings.rows_per_step * row_tokens
        with _signals() as stopping, bar(title, remaining, "tokens") as live:
            progress = loop.run(progress, tracker, live, stopping)
    finally:
        tracker.close()
    if progress.step < loop.num_steps:
        raise Interrupted(f"stopped at step {progress.step} of {loop.num_steps}; resume with --resume")
    training = {"settings_digest": digest, "arm": settings.arm.kind, "blockexpand_version": __version__}
    export_model(Path(settings.model), out / "model", loop.shipped(), training)
    record = _record(settings, loop, progress)
    write_record(out / RECORD_NAME, record)
    return record


def run_digest(settings: TrainSettings) -> str:
    """What makes a run the same run: every setting but where it is put and how often it is saved."""
    plain = to_plain(settings)
    return digest_json({k: v for k, v in plain.items() if k not in ("out", "keep_checkpoints")})


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
            if old.get(key) != new.get(key) and f"{path}{key}" not in ("out", "keep_checkpoints"):
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
        tokens_per_second=round(num_tokens / max(progress.train_seconds, 1e-9), 1),
        peak_memory_bytes=_peak_memory_bytes(),
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
