"""A few of a model's blocks in memory, the rest as shapes: for models larger than the memory.

In: a folder and which blocks. Out: the model as transformers builds it, with the numbers of those blocks, or of
everything but the blocks; all else is on torch's meta device, and its bytes are not read. Refused: what `load_model`
refuses. transformers does the loading, so names, conversions and dtypes are those of the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from blockexpand.families.family import Family
from blockexpand.families.modules import load_model

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_outside(folder: Path, family: Family, num_blocks: int, *, dtype: torch.dtype, device: str) -> nn.Module:
    """Embeddings, final norm, head: everything but the blocks, which are shapes.

    Raises:
        LiveError: transformers cannot build the model.
    """
    places = {"": "cpu", **dict.fromkeys(_names(family, num_blocks), "meta")}
    with _left_where_they_are():
        return load_model(folder, dtype=dtype, device=device, loader=family.loader, places=places)


def load_blocks(
    folder: Path, family: Family, num_blocks: int, blocks: Collection[int], *, dtype: torch.dtype
) -> nn.Module:
    """These blocks alone, on the CPU; everything else is a shape.

    Raises:
        LiveError: transformers cannot build the model.
    """
    # Each block has an entry of its own: to transformers, the name of block 1 is the beginning of block 10's.
    names = _names(family, num_blocks)
    places = {"": "meta", **dict.fromkeys(names, "meta"), **dict.fromkeys((names[i] for i in blocks), "cpu")}
    with _left_where_they_are():
        return load_model(folder, dtype=dtype, loader=family.loader, places=places)


def _names(family: Family, num_blocks: int) -> list[str]:
    return [f"{family.stack.module}.{number}" for number in range(num_blocks)]


@contextlib.contextmanager
def _left_where_they_are() -> Generator[None]:
    """Keep transformers from handing a model on two devices to accelerate, which would hide its tensors behind hooks.

    There is no setting for it (transformers 5.24, modeling_utils.py, from_pretrained).
    """
    from unittest import mock

    with mock.patch("transformers.modeling_utils.accelerate_dispatch"):
        yield
