"""What a run would take, before it is started: tokens, steps, arithmetic, memory, hours.

In: the settings of a run, whose checkpoint and data exist (headers and records are read, no tensor), and the
devices it is to run on. Out: a frozen `Forecast`. Refused: what the run itself would refuse for its data.
Figures are computed, not measured: memory leaves out the allocator's waste and the framework's own gigabyte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.corpus import open_corpus
from blockexpand.errors import TrainingError
from blockexpand.expansion import Survey, backward_flops, forward_flops, survey
from blockexpand.live.loss import CHUNK_POSITIONS
from blockexpand.records import check
from blockexpand.records.expansion import read_expansion
from blockexpand.records.plan import SILENT, BlockTensor
from blockexpand.records.run import (
    SELF,
    ArmSettings,
    BlocksArm,
    FullArm,
    LoraArm,
    MoeArm,
    OldBlocksArm,
    ParallelArm,
    TrainSettings,
    UpscaledArm,
)
from blockexpand.training.memory import frozen_bytes, needs_of

_SAVED_BYTES = 12
"""Of each number that trains, in a checkpoint: the master and AdamW's two moments, in float32."""
_LOGITS_COPIES = 3
"""Of one chunk of logits at once, in float32: the logits, their log-softmax, its exponential (numerics/loss.py)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """What a run is to run on."""

    number: int = 1
    """Processes, one a device."""
    peak_tflops: float = 989.0
    """Of one device in the run's precision: bf16 without sparsity, as in the data sheet of an H100 SXM."""
    mfu: float = 0.4
    """Share of the peak that is expected to go into the arithmetic counted here."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.number > 0, "processes", self.number, "more than 0")
        check(self.peak_tflops > 0, "peak_tflops", self.peak_tflops, "more than 0")
        check(0 < self.mfu <= 1, "mfu", self.mfu, "a share in (0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would take."""

    num_blocks: int
    num_trained_blocks: int
    """Blocks whose own weights train."""
    num_parameters: int
    num_trained_parameters: int
    domain_tokens: int
    """Positions of domain rows, padding included."""
    general_tokens: int
    """Positions of general rows on top."""
    domain_epochs: float
    """How often each domain row is seen."""
    num_steps: int
    rows_per_step: int
    row_tokens: int
    flops: int
    """Operations of all steps; measuring and saving are not counted."""
    reference_flops: int
    """Of these: the base's forward passes on general rows, for the KL."""
    state_bytes: int
    """In each process: weights, and of what trains masters, gradients and moments."""
    activation_bytes: int
    """In each process: what a pass of `rows_per_pass` rows keeps for its backward pass, and a chunk of logits."""
    checkpoint_bytes: int
    """One checkpoint on disk."""
    devices: Devices
    hours: float
    """At the given share of the peak."""

    @property
    def memory_bytes(self) -> int:
        """In each process, all together."""
        return self.state_bytes + self.activation_bytes


def forecast(settings: TrainSettings, devices: Devices | None = None) -> Forecast:
    """What the settings would do.

    Args:
        settings: The run.
        devices: What it is to run on; one H100 when None.

    Raises:
        CheckpointError, FamilyError, PlanError: the checkpoint cannot be read.
        CorpusError: the data cannot be opened.
        TrainingError: a step has fewer rows than there are processes.
    """
    devices = devices or Devices()
    if isinstance(settings.arm, MoeArm | ParallelArm | UpscaledArm):
        raise TrainingError(
            f"no forecast is made for the arm {settings.arm.kind!r}; expected blocks, old-blocks, full or lora; leave "
            "out --dry-run"
        )
    if settings.rows_per_step < devices.number:
        raise TrainingError(
            f"rows_per_step is {settings.rows_per_step}, and there are {devices.number} processes; expected at least "
            "one row each; raise rows_per_step or start fewer"
        )
    checkpoint = open_checkpoint(settings.model)
    settings = dataclasses.replace(settings, model=str(checkpoint.folder))
    facts, trained = survey(checkpoint), _Trained.of(settings)
    corpus = open_corpus(settings.data.domain)
    if settings.data.general not in (None, SELF):
        open_corpus(cast(str, settings.data.general))
    row_tokens = corpus.record.row_tokens
    num_steps = settings.num_steps(row_tokens)
    rows = corpus.rows(settings.data.domain_split).num_rows
    flops, reference = _flops(settings, checkpoint.config, facts, trained, row_tokens)
    num_trained = trained.parameters(facts)
    return Forecast(
        num_blocks=facts.depth,
        num_trained_blocks=len(trained.blocks(facts)),
        num_parameters=_num_parameters(facts),
        num_trained_parameters=num_trained,
        domain_tokens=num_steps * settings.num_domain_rows * row_tokens,
        general_tokens=num_steps * settings.num_general_rows * row_tokens,
        domain_epochs=round(num_steps * settings.num_domain_rows / rows, 3),
        num_steps=num_steps,
        rows_per_step=settings.rows_per_step,
        row_tokens=row_tokens,
        flops=num_steps * flops,
        reference_flops=num_steps * reference,
        state_bytes=needs_of(settings, devices.number > 1).per_process(devices.number),
        activation_bytes=_activation_bytes(settings, checkpoint, facts, trained, row_tokens),
        checkpoint_bytes=_SAVED_BYTES * num_trained,
        devices=devices,
        hours=num_steps * flops / (devices.number * devices.peak_tflops * 1e12 * devices.mfu) / 3600,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """What of the checkpoint an arm trains."""

    arm: ArmSettings
    new: tuple[int, ...]

    @classmethod
    def of(cls, settings: TrainSettings) -> _Trained:
        is_blocks = isinstance(settings.arm, BlocksArm)
        new = read_expansion(settings.model).plan.new_positions if is_blocks else ()
        return cls(arm=settings.arm, new=new)

    def blocks(self, facts: Survey) -> tuple[int, ...]:
        """The blocks whose own weights train."""
        match self.arm:
            case FullArm():
                return tuple(range(facts.depth))
            case OldBlocksArm(blocks=blocks):
                return tuple(sorted(blocks))
            case LoraArm():
                return ()
            case _:
                return self.new

    def first(self, facts: Survey) -> int:
        """The lowest block that is differentiated."""
        return min(self.blocks(facts), default=0)

    def parameters(self, facts: Survey) -> int:
        """How many numbers train."""
        match self.arm:
            case FullArm():
                return _num_parameters(facts)
            case LoraArm(rank=rank, trainable_parameters=wanted):
                matrices = [m for block in range(facts.depth) for m in _matrices(facts.tensors_of(block))]
                per_rank = sum(sum(m.shape) for m in matrices)
                return per_rank * (rank or max(1, round(cast(int, wanted) / per_rank)))
            case _:
                return sum(_elements(facts.tensors_of(block)) for block in self.blocks(facts))


def _matrices(tensors: Iterable[BlockTensor]) -> list[BlockTensor]:
    return [t for t in tensors if t.parameter and len(t.shape) == 2]


def _elements(tensors: Iterable[BlockTensor]) -> int:
    total = 0
    for tensor in tensors:
        size = 1
        for length in tensor.shape:
            size *= length
        total += size if tensor.parameter else 0
    return total


def _num_parameters(facts: Survey) -> int:
    outer = sum(entry.num_elements for name, entry in facts.outer.items() if name not in facts.tied)
    return outer + sum(_elements(facts.tensors_of(block)) for block in range(facts.depth))


def _flops(
    settings: TrainSettings, config: dict[str, Any], facts: Survey, trained: _Trained, row_tokens: int
) -> tuple[int, int]:
    """Operations of one step, and of these the reference's."""
    stack = range(facts.depth)
    forward = forward_flops(facts, config, row_tokens, stack)
    backward = backward_flops(facts, config, row_tokens, trained.blocks(facts), trained.first(facts))
    if isinstance(trained.arm, FullArm):
        backward = 2 * forward
    if isinstance(trained.arm, LoraArm):
        backward += 6 * trained.parameters(facts)
    per_step = (forward + backward) * settings.rows_per_step * row_tokens
    if not settings.retention.kl_weight:
        return per_step, 0
    old = [block for block in stack if block not in trained.new]
    reference = forward_flops(facts, config, row_tokens, old) * settings.num_general_rows * row_tokens
    return per_step + reference, reference


def _activation_bytes(
    settings: TrainSettings, checkpoint: Checkpoint, facts: Survey, trained: _Trained, row_tokens: int
) -> int:
    """What one pass keeps: a block's activations where it is kept, its input where it is recomputed."""
    text = facts.family.text(checkpoint.config)
    width = frozen_bytes(settings)
    hidden = max(facts.outer.values(), key=lambda entry: entry.num_elements).shape[-1]  # of the embeddings
    own, first = frozenset(trained.blocks(facts)), trained.first(facts)
    kept, largest = 0, 0
    for block in range(first, facts.depth):
        trains = block in own or isinstance(trained.arm, LoraArm)
        whole = _kept_of_block(facts.tensors_of(block), hidden, width, trains=trains)
        again = settings.recompute == "from-first-new" or (settings.recompute == "new" and trains)
        kept += width * hidden if again else whole
        largest = max(largest, whole if again else 0)
    tokens = min(settings.rows_per_pass, settings.rows_per_step) * row_tokens
    vocabulary = text.get("vocab_size")
    logits = 4 * _LOGITS_COPIES * min(CHUNK_POSITIONS, tokens) * (vocabulary if isinstance(vocabulary, int) else 0)
    return tokens * (kept + largest) + logits


def _kept_of_block(tensors: Iterable[BlockTensor], hidden: int, width: int, *, trains: bool) -> int:
    """Bytes a token that a block keeps for its backward pass.

    Kept whatever trains: what the inner matrices give (queries, keys, values, gate, up), what the writers take
    (attention's output, the MLP's product), and each norm's input in float32. Kept where weights train besides:
    every matrix's input, and the normalised values. Counted on tiny Llamas: tests/training/test_forecast.py.
    """
    matrices = _matrices(tensors)
    writers = [m for m in matrices if m.starts in SILENT]
    inner = [m for m in matrices if m.starts not in SILENT]
    kept = width * (sum(m.shape[0] for m in inner) + sum(m.shape[-1] for m in writers)) + 2 * 4 * hidden
    if trains:
        kept += width * (4 * hidden + (writers[-1].shape[-1] if writers else 0))
    return kept
