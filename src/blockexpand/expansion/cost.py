"""What a deeper stack costs, and what training it costs: parameters and bytes, in this one place.

In: a survey and the places of the new blocks, or the headers of a checkpoint and what of it trains in which way. Out: a
frozen `Cost`, or a frozen `RunCost`. Every formula is stated where it is used and checked by hand in the tests. No time
is told: that is measured, on the machine. Memory leaves out the allocator's waste and the framework's own gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.checkpoint import Checkpoint, num_bytes, num_elements
from blockexpand.expansion.survey import Survey
from blockexpand.expansion.survey import survey as survey_of
from blockexpand.families import Family, family_for
from blockexpand.records.plan import SILENT, BlockTensor, Cost
from blockexpand.units import DTYPES, FLOATS

TRAINED_BYTES_PER_PARAMETER = 16
"""An fp32 master, an fp32 gradient and Adam's two fp32 moments."""
SAVED_BYTES_PER_PARAMETER = 12
"""Of each number that trains, in a checkpoint: all of these but the gradient."""
PACKED_BYTES = {"int8": 1.0, "nf4": 0.5625}
"""Of each number in a quantised matrix of an old block; nf4 has a float32 scale for 64 numbers."""
CHUNK_POSITIONS = 512
"""Positions whose logits are at hand at once: 256 to 512 were fastest on CPU (docs/log.md); [512, 128k] fp32 is
262 MB."""
_LOGITS_COPIES = 3
"""Of one chunk of logits at once, in float32: the logits, their log-softmax, its exponential (live/loss.py)."""


def cost(facts: Survey, donors: Sequence[int]) -> Cost:
    """The cost of copies of these old blocks on top of the base."""
    old = _all_parameters(facts)
    new = sum(_parameters(facts, block) for block in donors)
    before = sum(e.num_bytes for e in facts.outer.values()) + sum(_bytes(facts, block) for block in range(facts.depth))
    return Cost(
        parameters_before=old,
        parameters_new=new,
        parameters_after=old + new,
        weights_bytes_before=before,
        weights_bytes_after=before + sum(_bytes(facts, block) for block in donors),
        training_memory_bytes=before + new * TRAINED_BYTES_PER_PARAMETER,
    )


def _parameters(facts: Survey, block: int) -> int:
    return sum(num_elements(t.shape) for t in facts.tensors_of(block) if t.parameter)


def _bytes(facts: Survey, block: int) -> int:
    return sum(num_bytes(t.dtype, t.shape) for t in facts.tensors_of(block))


# --- a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What of a run its memory depends on."""

    trains: Literal["blocks", "all", "adapters"]
    trained_blocks: tuple[int, ...] = ()
    """Whose own weights train, with `blocks`."""
    adapter_rank: int = 0
    """Of `adapters`; or instead `adapter_parameters`."""
    adapter_parameters: int = 0
    copies_base: bool = False
    """Whether the base is a second copy in memory, asked for the KL."""
    width_bytes: int
    """Of a frozen number and of an activation: 2 or 4."""
    packed: str = "same"
    """How old blocks' matrices are held: `same`, or a key of PACKED_BYTES."""
    recompute: Literal["none", "new", "from-first-new"] = "none"
    row_tokens: int


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What training takes."""

    num_blocks: int
    num_trained_blocks: int
    """Blocks whose own weights train."""
    num_parameters: int
    num_trained_parameters: int
    state_bytes: int
    """Weights, and for what trains masters, gradients and moments: cut over the processes."""
    gathered_bytes: int
    """What each of several processes gathers at a time: all outside the blocks, and two blocks."""
    row_bytes: int
    """What one row of a pass keeps for its backward pass."""
    chunk_bytes: int
    """A chunk of logits, and a block that is run again, whatever the rows."""
    checkpoint_bytes: int
    """One checkpoint on disk."""

    def memory_bytes(self, rows_per_pass: int, processes: int = 1) -> int:
        """In each of the processes, all together."""
        return state_per_process(self.state_bytes, self.gathered_bytes, processes) + (
            rows_per_pass * self.row_bytes + self.chunk_bytes
        )


def state_per_process(state_bytes: int, gathered_bytes: int, processes: int) -> int:
    """Bytes in each process before any activation."""
    return state_bytes if processes == 1 else -(-state_bytes // processes) + gathered_bytes


def width_of(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of a frozen number and of an activation under a precision: `float32`, `bfloat16`, or `auto`."""
    if precision != "auto":
        return 4 if precision == "float32" else 2
    stored = next((t.dtype for t in checkpoint.tensors.values() if t.dtype in FLOATS), "BF16")
    return 4 if DTYPES[stored].bits > 16 else 2


def state_bytes(checkpoint: Checkpoint, shape: RunShape, family: Family | None) -> tuple[int, int]:
    """Bytes kept whatever the rows, and of these what each of several processes gathers.

    Without a family (any model that transformers loads may train whole) blocks are not told apart: nothing is
    gathered, and of chosen blocks none counts as trained.
    """
    width, trained = shape.width_bytes, frozenset(shape.trained_blocks)
    state, outer, blocks = 0, 0, dict[int, int]()
    for name, entry in checkpoint.tensors.items():
        block = family.locate(name).block if family is not None else None
        trains = shape.trains == "all" or (block is not None and block in trained)
        held: float = width
        if block is not None and len(entry.shape) == 2:
            held = PACKED_BYTES.get(shape.packed, width)
        each = (TRAINED_BYTES_PER_PARAMETER if trains else held) + (width if shape.copies_base else 0)
        state += round(each * entry.num_elements)
        if block is None:
            outer += width * entry.num_elements
        else:
            blocks[block] = blocks.get(block, 0) + width * entry.num_elements
    return state, outer + sum(sorted(blocks.values())[-2:])


def run_cost(checkpoint: Checkpoint, shape: RunShape) -> RunCost:
    """What a run of this shape takes, by the headers of its checkpoint.

    Raises:
        FamilyError: no family is known for it.
    """
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    facts = survey_of(checkpoint)
    trained = _trained_parameters(facts, shape)
    state, gathered = state_bytes(checkpoint, shape, family)
    state += TRAINED_BYTES_PER_PARAMETER * trained if shape.trains == "adapters" else 0
    row, chunk = _activation_bytes(facts, checkpoint.config, shape)
    return RunCost(
        num_blocks=facts.depth,
        num_trained_blocks=len(_trained_blocks(facts, shape)),
        num_parameters=_all_parameters(facts),
        num_trained_parameters=trained,
        state_bytes=state,
        gathered_bytes=gathered,
        row_bytes=row,
        chunk_bytes=chunk,
        checkpoint_bytes=SAVED_BYTES_PER_PARAMETER * trained,
    )


def _trained_blocks(facts: Survey, shape: RunShape) -> tuple[int, ...]:
    return tuple(range(facts.depth)) if shape.trains == "all" else shape.trained_blocks


def _all_parameters(facts: Survey) -> int:
    outer = sum(entry.num_elements for name, entry in facts.outer.items() if name not in facts.tied)
    return outer + sum(_parameters(facts, block) for block in range(facts.depth))


def _trained_parameters(facts: Survey, shape: RunShape) -> int:
    if shape.trains == "all":
        return _all_parameters(facts)
    if shape.trains == "blocks":
        return sum(_parameters(facts, block) for block in shape.trained_blocks)
    per_rank = sum(sum(m.shape) for block in range(facts.depth) for m in _matrices(facts.tensors_of(block)))
    return per_rank * (shape.adapter_rank or max(1, round(shape.adapter_parameters / per_rank)))


def _matrices(tensors: Iterable[BlockTensor]) -> list[BlockTensor]:
    return [t for t in tensors if t.parameter and len(t.shape) == 2]


def _activation_bytes(facts: Survey, config: Mapping[str, Any], shape: RunShape) -> tuple[int, int]:
    """What a row of one pass keeps, and what is there once: a block's activations where it is kept, its input where it
    is recomputed."""
    text = facts.family.text(dict(config))
    hidden = max(facts.outer.values(), key=lambda entry: entry.num_elements).shape[-1]  # of the embeddings
    own = frozenset(_trained_blocks(facts, shape))
    first, kept, largest = min(own, default=0), 0, 0
    for block in range(first, facts.depth):
        trains = block in own or shape.trains == "adapters"
        whole = _kept_of_block(facts.tensors_of(block), hidden, shape.width_bytes, trains=trains)
        again = shape.recompute == "from-first-new" or (shape.recompute == "new" and trains)
        kept += shape.width_bytes * hidden if again else whole
        largest = max(largest, whole if again else 0)
    vocabulary = text.get("vocab_size")
    logits = 4 * _LOGITS_COPIES * CHUNK_POSITIONS * (vocabulary if isinstance(vocabulary, int) else 0)
    return shape.row_tokens * (kept + largest), logits


def _kept_of_block(tensors: Iterable[BlockTensor], hidden: int, width: int, *, trains: bool) -> int:
    """Bytes a token that a block keeps for its backward pass.

    Kept whatever trains: what the inner matrices give (queries, keys, values, gate, up), what the writers take
    (attention's output, the MLP's product), and each norm's input in float32. Kept where weights train besides:
    every matrix's input, and the normalised values. Counted on tiny Llamas: tests/training/test_preview.py.
    """
    matrices = _matrices(tensors)
    writers = [m for m in matrices if m.starts in SILENT]
    inner = [m for m in matrices if m.starts not in SILENT]
    kept = width * (sum(m.shape[0] for m in inner) + sum(m.shape[-1] for m in writers)) + 2 * 4 * hidden
    if trains:
        kept += width * (4 * hidden + (writers[-1].shape[-1] if writers else 0))
    return kept
