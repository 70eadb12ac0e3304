"""A new block in memory that writes a multiple of what it did, and again just what it did.

In: a block, and which of its tensors write to the residual stream. Out: the same block with those numbers times a gain.
The numbers are those that `pack scale` writes, to the bit, where the model is held in the pack's precision; in a wider
one they are not rounded to it. The old ones are kept meanwhile, so that they can come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from blockexpand.families import Family
from blockexpand.records.plan import SILENT, BlockTensor


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A tensor of a block in memory that writes to the residual stream."""

    parameter: nn.Parameter
    """What is in use."""
    added: float
    """What has to be added to it for a gain: 1 for one that is stored as gain minus one, else 0."""


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    by: float
    before: tuple[Tensor, ...]
    """The writers' numbers as they were attached."""


_SCALED: WeakKeyDictionary[nn.Module, _Scaled] = WeakKeyDictionary()
"""The blocks that are scaled; those that are as they were attached are not here."""


def gain_of(block: nn.Module) -> float:
    """By what the block is scaled."""
    return _SCALED[block].by if block in _SCALED else 1.0


def writers_of(block: nn.Module, family: Family, tensors: Iterable[BlockTensor]) -> tuple[Writer, ...]:
    """The block's writers; `tensors` are the plan's."""
    parameters = dict(block.named_parameters())
    # Of experts that are one tensor in memory either all write or none (families/blocks.py).
    silent = {family.block.name_in_memory(t.tail): t.starts for t in tensors if t.starts in SILENT}
    return tuple(
        Writer(parameter=parameters[name], added=1.0 if starts == "minus-one" else 0.0)
        for name, starts in silent.items()
    )


@torch.no_grad()
def set_gain(block: nn.Module, writers: tuple[Writer, ...], by: float) -> None:
    """Scale what the block writes, from the numbers that were attached."""
    held = _SCALED.pop(block, None)
    if held is None and by == 1:
        return
    kept = held.before if held else tuple(writer.parameter.detach().clone() for writer in writers)
    for writer, before in zip(writers, kept, strict=True):
        if by == 1:
            writer.parameter.copy_(before)
            continue
        # As packs/scaling.py does it: one product, one sum where there is one, rounded at the end.
        wide = before if before.dtype == torch.float64 else before.float()
        writer.parameter.copy_(wide * by + (by - 1) if writer.added else wide * by)
    if by != 1:
        _SCALED[block] = _Scaled(by=by, before=kept)
