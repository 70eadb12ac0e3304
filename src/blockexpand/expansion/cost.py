"""What a deeper stack costs, and what training it costs: parameters, bytes and arithmetic, in this one place.

In: a survey and the places of the new blocks, or the headers of a checkpoint and what of it trains in which way. Out: a
frozen `Cost`, or a frozen `RunCost`. Every formula is stated where it is used and checked by hand in the tests;
multiplications and additions count as one operation each. No time is told: that is measured, on the machine. Figures
are computed: memory leaves out the allocator's waste and the framework's own gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.checkpoint import Checkpoint, num_bytes, num_elements
from blockexpand.expansion.survey import Survey
from blockexpand.expansion.survey import survey as survey_of
from blockexpand.families import Family, family_for, matches_any, tail_matches
from blockexpand.records.plan import SILENT, BlockTensor, Cost
from blockexpand.units import DTYPES, FLOATS

DEFAULT_CONTEXT_TOKENS = 4096
"""The sequence length at which attention is counted: LLaMA Pro trains with it (PAPER.md 2)."""
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


def cost(survey: Survey, config: dict[str, Any], sources: Sequence[int], positions: Sequence[int]) -> Cost:
    """The cost of a stack of copies of these old blocks, those at `positions` being new."""
    text = survey.family.text(config)
    outer_parameters = sum(e.num_elements for name, e in survey.outer.items() if name not in survey.tied)
    old, new = range(survey.depth), [sources[position] for position in positions]
    base_parameters = outer_parameters + sum(_parameters(survey, block) for block in old)
    new_parameters = sum(_parameters(survey, block) for block in new)
    base_bytes = sum(e.num_bytes for e in survey.outer.values()) + sum(_bytes(survey, block) for block in old)
    longest = text.get("max_position_embeddings")
    stated = type(longest) is int and longest > 0
    context = min(DEFAULT_CONTEXT_TOKENS, longest) if stated else DEFAULT_CONTEXT_TOKENS
    counting = _Counting(survey=survey, config=text, context=context)
    forward_before = counting.head() + sum(counting.block(block) for block in old)
    forward_after = counting.head() + sum(counting.block(block) for block in sources)
    return Cost(
        parameters_before=base_parameters,
        parameters_new=new_parameters,
        parameters_after=base_parameters + new_parameters,
        weights_bytes_before=base_bytes,
        weights_bytes_after=base_bytes + sum(_bytes(survey, block) for block in new),
        training_memory_bytes=base_bytes + new_parameters * TRAINED_BYTES_PER_PARAMETER,
        context_tokens=context,
        forward_flops_per_token_before=forward_before,
        forward_flops_per_token_after=forward_after,
        training_flops_per_token=forward_after + counting.backward(sources, positions, min(positions)),
        full_training_flops_per_token=3 * forward_before,
    )


def forward_flops(survey: Survey, config: dict[str, Any], context: int, blocks: Sequence[int]) -> int:
    """Operations of one token on its way through these blocks and the head, in rows of `context` tokens."""
    counting = _Counting(survey=survey, config=survey.family.text(config), context=context)
    return counting.head() + sum(counting.block(block) for block in blocks)


def backward_flops(survey: Survey, config: dict[str, Any], context: int, trained: Sequence[int], first: int) -> int:
    """Operations of one token's gradients, in rows of `context` tokens.

    Args:
        survey: of the checkpoint that trains, new blocks included.
        config: the content of its config.json.
        context: the length of a row.
        trained: the blocks whose weights take a gradient; of the head and the embeddings none is counted.
        first: the lowest block that is differentiated.
    """
    counting = _Counting(survey=survey, config=survey.family.text(config), context=context)
    return counting.backward(range(survey.depth), trained, first)


def _parameters(survey: Survey, block: int) -> int:
    return sum(num_elements(t.shape) for t in survey.tensors_of(block) if t.parameter)


def _bytes(survey: Survey, block: int) -> int:
    return sum(num_bytes(t.dtype, t.shape) for t in survey.tensors_of(block))


@dataclass(frozen=True, kw_only=True)
class _Counting:
    """Arithmetic on one token."""

    survey: Survey
    config: dict[str, Any]
    context: int

    def head(self) -> int:
        """2 for each element of the output head; a tied head is its source's shape."""
        outer = self.survey.family.outer
        sources = {t.tensor: t.source for t in outer.tied}
        names = [name if name in self.survey.outer else sources[name] for name in outer.matrices]
        return sum(2 * self.survey.outer[name].num_elements for name in names)

    def matrices(self, block: int) -> int:
        """2 for each element of a block's matrices that a token uses; gains and biases are too few to count."""
        return sum(self._matrix(block, t) for t in self.survey.tensors_of(block) if t.parameter and len(t.shape) > 1)

    def _matrix(self, block: int, tensor: BlockTensor) -> int:
        elements, experts = 2 * num_elements(tensor.shape), self.survey.family.block.experts
        if experts is None or not matches_any(experts.tensors, tensor.tail):
            return elements
        used = self.config.get(experts.used_key)
        used = used if type(used) is int and used > 0 else experts.used_default
        if len(tensor.shape) > 2:
            return elements * used // tensor.shape[0]
        pattern = next(p for p in experts.tensors if tail_matches(p, tensor.tail))
        held = sum(tail_matches(pattern, t.tail) for t in self.survey.tensors_of(block))
        return elements * used // held

    def attention(self, block: int) -> int:
        """One block's scores and weighted values.

        4 for each of heads * head width and each of the (T + 1) / 2 keys that a token sees on average under a
        causal mask. A sliding window would see fewer, and a state-space mixer costs some; neither is counted.
        """
        tails = self.survey.family.block.attention_output
        width = sum(t.shape[1] for t in self.survey.tensors_of(block) if t.tail in tails)
        return 2 * width * (self.context + 1)

    def block(self, block: int) -> int:
        """One block's forward pass."""
        return self.matrices(block) + self.attention(block)

    def backward(self, sources: Sequence[int], positions: Sequence[int], first: int) -> int:
        """Gradients that training only the blocks at `positions` needs, when the lowest to be reached is `first`.

        The head and every block from the first one on pass the gradient down: as much again as their forward
        matrices, and twice the forward attention (four products for two). Only those blocks take weight gradients:
        as much again as their matrices. Below the first nothing is differentiated.
        """
        passing = sum(self.matrices(block) + 2 * self.attention(block) for block in sources[first:])
        return self.head() + passing + sum(self.matrices(sources[position]) for position in positions)


# --- a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What of a run its memory and arithmetic depend on."""

    trains: Literal["blocks", "all", "adapters"]
    trained_blocks: tuple[int, ...] = ()
    """Whose own weights train, with `blocks`."""
    new_blocks: tuple[int, ...] = ()
    """Which the base has not: left out when it is asked."""
    adapter_rank: int = 0
    """Of `adapters`; or instead `adapter_parameters`."""
    adapter_parameters: int = 0
    asks_base: bool = False
    """Whether general rows also run through the base, for the KL."""
    copies_base: bool = False
    """Whether the base is then a second copy in memory."""
    width_bytes: int
    """Of a frozen number and of an activation: 2 or 4."""
    packed: str = "same"
    """How old blocks' matrices are held: `same`, or a key of PACKED_BYTES."""
    recompute: Literal["none", "new", "from-first-new"] = "none"
    rows_per_step: int
    general_rows: int
    rows_per_pass: int
    row_tokens: int


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What training takes."""

    num_blocks: int
    num_trained_blocks: int
    """Blocks whose own weights train."""
    num_parameters: int
    num_trained_parameters: int
    step_flops: int
    """Operations of one step; measuring and saving are not counted."""
    reference_flops: int
    """Of these: the base's forward passes on general rows."""
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
    flops, reference = _step_flops(facts, checkpoint.config, shape, trained)
    row, chunk = _activation_bytes(facts, checkpoint.config, shape)
    return RunCost(
        num_blocks=facts.depth,
        num_trained_blocks=len(_trained_blocks(facts, shape)),
        num_parameters=_all_parameters(facts),
        num_trained_parameters=trained,
        step_flops=flops,
        reference_flops=reference,
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


def _step_flops(facts: Survey, config: dict[str, Any], shape: RunShape, trained: int) -> tuple[int, int]:
    """Operations of one step, and of these the base's.

    The base's pass on general rows begins above the blocks that it shares with the model's own.
    """
    stack, blocks = range(facts.depth), _trained_blocks(facts, shape)
    first = min(blocks, default=0)
    forward = forward_flops(facts, config, shape.row_tokens, stack)
    backward = backward_flops(facts, config, shape.row_tokens, blocks, first)
    if shape.trains == "all":
        backward = 2 * forward
    if shape.trains == "adapters":
        backward += 6 * trained
    step = (forward + backward) * shape.rows_per_step * shape.row_tokens
    if not shape.asks_base:
        return step, 0
    old = [block for block in stack if block not in shape.new_blocks and block >= first]
    reference = forward_flops(facts, config, shape.row_tokens, old) * shape.general_rows * shape.row_tokens
    return step + reference, reference


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
    every matrix's input, and the normalised values. Counted on tiny Llamas: tests/expansion/test_cost.py.
    """
    matrices = _matrices(tensors)
    writers = [m for m in matrices if m.starts in SILENT]
    inner = [m for m in matrices if m.starts not in SILENT]
    kept = width * (sum(m.shape[0] for m in inner) + sum(m.shape[-1] for m in writers)) + 2 * 4 * hidden
    if trains:
        kept += width * (4 * hidden + (writers[-1].shape[-1] if writers else 0))
    return kept
