"""Parameters from a checkpoint on disk, each process reading only the rows it holds.

In: a sharded model without values, the folder of its checkpoint. Out: its values, to the bit those that
transformers would load, and how many bytes were read. Refused: a parameter that is not in the files under the
name that the family knows, in another shape, or in a type that is more than a float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import Family, family_for
from blockexpand.families.blocks import NUMBER
from blockexpand.training.sharding import Piece, piece_of
from blockexpand.units import FLOATS


def names_to_fill(model: nn.Module) -> list[str]:
    """The tensors that a model has from its files: parameters, of tied ones the first, and buffers that are saved."""
    parameters = dict(model.named_parameters())
    buffers = {name for name, _ in model.named_buffers()}
    return [*parameters, *(name for name in model.state_dict() if name in buffers)]


def fill(model: PreTrainedModel, names: list[str], folder: Path) -> int:
    """Read this process's rows of every named tensor; give back the bytes read.

    Args:
        model: Its parameters are cut over a mesh, or whole.
        names: As `names_to_fill` gave them before the model was sharded.
        folder: The checkpoint.

    Raises:
        TrainingError: a tensor cannot be found or read.
    """
    files = _Files(open_checkpoint(folder))
    family = family_for(files.checkpoint.config, str(folder), files.checkpoint.tensors)
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers())
    head = cast(nn.Linear, model.get_output_embeddings()).weight
    with torch.no_grad():
        for name in names:
            piece = piece_of(tensors[name])
            if piece.local.numel():
                piece.local.copy_(_value(name, tensors[name] is head, piece, family, files))
    return files.num_bytes_read


class _Files:
    """The files of a checkpoint, opened once each."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.num_bytes_read = 0
        self._open: dict[str, Any] = {}

    def rows(self, name: str, first: int, count: int) -> Tensor:
        entry = self.checkpoint.tensors[name]
        if entry.dtype not in FLOATS:
            raise TrainingError(
                f"{self.checkpoint.source} holds {name} in {entry.dtype}, which cannot be read piece by piece; "
                f"expected {', '.join(FLOATS)}; convert the checkpoint, or train in one process"
            )
        path = str(self.checkpoint.folder / entry.file)
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        part = self._open[path].get_slice(name)[first : first + count]
        self.num_bytes_read += part.numel() * part.element_size()
        return part


def _value(name: str, is_head: bool, piece: Piece, family: Family, files: _Files) -> Tensor:
    """This process's rows of a tensor, put together from the files' tensors."""
    count = len(piece.local)
    prefix = family.stack.module + "."
    if name.startswith(prefix):
        index, _, tail = name[len(prefix) :].partition(".")
        group = next((g for g in family.block.in_memory if g.memory == tail), None)
        sources = group.files if group else (tail,)
        if NUMBER in sources[0].split("."):
            return torch.stack(
                [
                    _expert(family, int(index), [s.replace(NUMBER, str(expert)) for s in sources], piece, files)
                    for expert in range(piece.first_row, piece.first_row + count)
                ]
            )
        found = family.name_of(int(index), sources[0])
    else:
        found = _outer_name(name, is_head, family, files.checkpoint)
    _check_shape(name, found, piece.shape, files.checkpoint)
    return files.rows(found, piece.first_row, count)


def _expert(family: Family, block: int, tails: list[str], piece: Piece, files: _Files) -> Tensor:
    """One expert of a parameter that holds all of them: gate and up follow each other in its rows."""
    parts = []
    for tail in tails:
        name = family.name_of(block, tail)
        shape = (piece.shape[1] // len(tails), *piece.shape[2:])
        _check_shape(f"expert {tail}", name, shape, files.checkpoint)
        parts.append(files.rows(name, 0, shape[0]))
    return torch.cat(parts)


def _outer_name(name: str, is_head: bool, family: Family, checkpoint: Checkpoint) -> str:
    """The name in the files of a tensor outside the blocks."""
    module, tensors = (path.rpartition(".")[0] for path in (family.stack.module, family.stack.tensors))
    candidates = [name, *(family.outer.matrices[-1:] if is_head else ())]
    candidates += [short for short in (name.removeprefix("model."),) if short.startswith(family.outer.copied)]
    if name.startswith(f"{module}."):
        candidates.append(f"{tensors}.{name.removeprefix(f'{module}.')}".removeprefix("."))
    for candidate in candidates:
        if candidate in checkpoint.tensors:
            return candidate
    raise TrainingError(
        f"{checkpoint.source} has no tensor for the model's {name} (looked for {' and '.join(candidates)}), so "
        "several processes cannot each read their part of it; expected the names of its family; train in one process"
    )


def _check_shape(parameter: str, name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> None:
    entry = checkpoint.tensors.get(name)
    if entry is None or entry.shape != shape:
        found = f"shape {list(entry.shape)}" if entry else "no such tensor"
        raise TrainingError(
            f"{checkpoint.source} has {found} for {name}, and the model's {parameter} is {list(shape)}; expected the "
            "same; write or download the folder again"
        )
