"""Does this checkpoint hold the model its config describes? What does one block of it consist of?

In: an opened checkpoint. Out: a frozen `Survey`. Refused: tensors the family does not have, by name; a number
of blocks in the weights that is not the config's; blocks that differ from each other; weights that are not
floats. No tensor's bytes are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from blockexpand.checkpoint import Checkpoint, TensorEntry
from blockexpand.digests import digest_json
from blockexpand.errors import PlanError, nearest
from blockexpand.families import Family, family_for, tail_matches

_SPELLED = 8
"""How many block indices an error lists."""
_FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """One tensor of a block; every block has it alike."""

    tail: str
    """Its name inside the block."""
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    """The sizes of its dimensions."""
    starts: Literal["donor", "zero"]
    """What it is in a new block: its donor's bytes, or zeros because it writes to the residual stream."""
    parameter: bool
    """Whether it is trained and counted; a stored buffer is not."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts about a base that a plan needs."""

    family: Family
    """The family that serves it."""
    depth: int
    """How many blocks it has."""
    block: tuple[BlockTensor, ...]
    """The tensors of a block, by tail."""
    outer: dict[str, TensorEntry]
    """The tensors outside the blocks."""
    tied: tuple[str, ...]
    """Names outside the blocks that are the same tensor as another: not counted, whether stored or not."""
    layout_digest: str
    """The digest of every tensor's name, dtype and shape."""


def survey(checkpoint: Checkpoint) -> Survey:
    """Look at config and headers together.

    Raises:
        FamilyError: no family serves the config.
        PlanError: the weights are not the model that the config describes.
    """
    where = checkpoint.source
    family = family_for(checkpoint.config, where)
    depth = family.depth(checkpoint.config)
    blocks, outer = _sort(family, checkpoint)
    _check_outer(family, checkpoint, outer)
    _check_depth(family, depth, blocks, where)
    for index in range(depth):
        _check_tails(family, checkpoint, index, blocks[index])
        _check_alike(family, index, blocks, where)
    return Survey(
        family=family,
        depth=depth,
        block=tuple(_block_tensors(family, blocks[0])),
        outer=outer,
        tied=tuple(t.tensor for t in family.tied_under(checkpoint.config)),
        layout_digest=layout_digest(checkpoint.tensors),
    )


def layout_digest(tensors: dict[str, TensorEntry]) -> str:
    """The digest of names, dtypes and shapes: the same however the tensors are spread over files."""
    return digest_json({name: [entry.dtype, *entry.shape] for name, entry in tensors.items()})


def _sort(family: Family, checkpoint: Checkpoint) -> tuple[dict[int, dict[str, TensorEntry]], dict[str, TensorEntry]]:
    blocks: dict[int, dict[str, TensorEntry]] = {}
    outer: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.tensors.items():
        place = family.locate(name)
        if place.block is None:
            outer[name] = entry
        else:
            blocks.setdefault(place.block, {})[place.tail] = entry
    return blocks, outer


def _check_outer(family: Family, checkpoint: Checkpoint, outer: Iterable[str]) -> None:
    allowed = family.outer_allowed()
    for name in outer:
        if name not in allowed:
            raise PlanError(
                f"{checkpoint.source}: the tensor {name!r} is not one of family {family.name!r}; "
                f"{nearest(name, allowed)}; expand a checkpoint of the plain language model"
            )
    for name in family.outer_required(checkpoint.config):
        if name not in outer:
            raise PlanError(
                f"{checkpoint.source}: the tensor {name!r} is missing; expected it under this config.json; download "
                "the checkpoint again, or mend its config.json"
            )


def _check_depth(family: Family, depth: int, blocks: Iterable[int], where: str) -> None:
    held = set(blocks)
    surplus = sorted(index for index in held if index >= depth)
    # A config may claim any depth: look only as far as can be said in a line.
    missing = list(itertools.islice((i for i in range(depth) if i not in held), _SPELLED + 1))
    if missing or surplus:
        parts = [f"blocks {_spell(missing)} are missing"] if missing else []
        parts += [f"blocks {_spell(surplus)} are too many"] if surplus else []
        raise PlanError(
            f"{where}: config.json says {family.depth_key} {depth}, and the weights hold {len(held)} blocks: "
            f"{' and '.join(parts)}; expected blocks 0 to {depth - 1}; use config and weights of the same model"
        )


def _spell(indices: list[int]) -> str:
    return ", ".join(str(i) for i in indices[:_SPELLED]) + (", ..." if len(indices) > _SPELLED else "")


def _check_tails(family: Family, checkpoint: Checkpoint, index: int, tensors: dict[str, TensorEntry]) -> None:
    allowed = family.allowed_tails(checkpoint.config)
    for tail in tensors:
        if not any(tail_matches(pattern, tail) for pattern in allowed):
            group = family.switch_of(tail)
            why = f"{group.switch} is off in config.json" if group else nearest(tail, allowed)
            raise PlanError(
                f"{checkpoint.source}: the tensor {family.name_of(index, tail)!r} is not one of family {family.name!r} "
                f"under this config; {why}; expand a checkpoint as transformers saves it"
            )
    for pattern in family.required_tails(checkpoint.config):
        if not any(tail_matches(pattern, tail) for tail in tensors):
            raise PlanError(
                f"{checkpoint.source}: the tensor {family.name_of(index, pattern)!r} is missing; expected it in every "
                "block under this config.json; download the checkpoint again"
            )


def _check_alike(family: Family, index: int, blocks: dict[int, dict[str, TensorEntry]], where: str) -> None:
    for tail, entry in blocks[index].items():
        first = blocks[0].get(tail)
        name = family.name_of(index, tail)
        if first is None:
            raise PlanError(f"{where}: block {index} has {name!r} and block 0 has no such tensor; expected all alike")
        if (first.dtype, first.shape) != (entry.dtype, entry.shape):
            raise PlanError(
                f"{where}: {name!r} is {entry.dtype} {list(entry.shape)}, and {first.dtype} {list(first.shape)} in "
                "block 0; expected all blocks alike; expand a checkpoint as transformers saves it"
            )
        if entry.dtype not in _FLOATS and not family.is_buffer(tail):
            raise PlanError(
                f"{where}: {name!r} is stored as {entry.dtype}; expected one of {', '.join(_FLOATS)}; expand the "
                "unquantised model and quantise the result"
            )
    if len(blocks[index]) != len(blocks[0]):
        tail = next(t for t in blocks[0] if t not in blocks[index])
        raise PlanError(f"{where}: block {index} lacks {tail!r}, which block 0 has; expected all alike")


def _block_tensors(family: Family, tensors: dict[str, TensorEntry]) -> list[BlockTensor]:
    writers = set(family.writers_among(tensors))
    return [
        BlockTensor(
            tail=tail,
            dtype=entry.dtype,
            shape=entry.shape,
            starts="zero" if tail in writers else "donor",
            parameter=not family.is_buffer(tail),
        )
        for tail, entry in sorted(tensors.items())
    ]
