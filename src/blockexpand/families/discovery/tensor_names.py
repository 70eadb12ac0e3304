"""The names that files have for what a loaded model holds: transformers renames some, and holds several as one.

In: a small model with random weights. Out: frozen `Names`: where the files keep the blocks, each block's tensors by
the files' names, and which tensor in memory they are. It is found by writing the model as transformers writes it,
every tensor filled with a number of its own. Refused, as `FamilyError` with the reason: files that do not number
the blocks, that keep as one what memory holds apart, or that take one tensor apart in a way that is not understood.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from blockexpand.errors import FamilyError
from blockexpand.families.discovery.trial_model import attempted
from blockexpand.families.family import NUMBER
from blockexpand.families.modules import no_progress_bars, parts_of

_MOST_PARTS = 4
"""How many kinds of tensor in files one tensor in memory may be made of: gate, up and their like."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the files call a model's tensors."""

    stack: str
    """The block list's path."""
    blocks: tuple[dict[str, str], ...]
    """For each block, every tail of the files and the tail in memory that it is (or is part of)."""
    outer: dict[str, str]
    """The tensors outside the blocks in files, and in memory."""
    order: dict[str, tuple[str, ...]]
    """For each tail in memory that is several in files (or has another name), their patterns in order."""


def find_names(model: PreTrainedModel, path: str) -> Names:
    """Write the model, and read what became of each tensor.

    Raises:
        FamilyError: the files' names do not map onto the model's.
    """
    held = [name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers())]
    sources = {name: held[number] for name, number in _tags(model, held).items()}
    written = _written(model)
    depth = len(list(model.get_submodule(path).children()))
    inside = [_inside(sources, f"{path}.{i}.") for i in range(depth)]
    stack = _stack_of(inside)
    blocks = tuple(
        {name.removeprefix(f"{stack}.{i}."): source for name, source in found.items()} for i, found in enumerate(inside)
    )
    outer = {name: source for name, source in sources.items() if not source.startswith(f"{path}.")}
    order: dict[str, tuple[str, ...]] = {}
    state = model.state_dict()
    for i, tails in enumerate(blocks):
        for memory in dict.fromkeys(tails.values()):
            files = [tail for tail, source in tails.items() if source == memory]
            if files != [memory] and memory not in order:
                parts = {tail: written[f"{stack}.{i}.{tail}"] for tail in files}
                order[memory] = _order_of(memory, state[f"{path}.{i}.{memory}"], parts)
    return Names(stack=stack, blocks=blocks, outer=outer, order=order)


def _written(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors as `save_pretrained` puts them into files."""
    with tempfile.TemporaryDirectory() as folder, attempted("transformers cannot write it"), no_progress_bars():
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def _tags(model: PreTrainedModel, held: Sequence[str]) -> dict[str, int]:
    """For each tensor in files, the number of the tensor in memory that it comes from."""
    tagged = copy.deepcopy(model)
    tensors = {**dict(tagged.named_parameters()), **dict(tagged.named_buffers())}
    for number, name in enumerate(held):
        tensors[name].data.fill_(number)
    result = {}
    for name, tensor in _written(tagged).items():
        numbers = tensor.double().unique().tolist()
        if len(numbers) != 1:
            parts = " and ".join(held[int(number)] for number in numbers[:3]) or "nothing"
            raise FamilyError(f"files keep {name} as one tensor, and transformers holds it as {parts}")
        result[name] = int(numbers[0])
    return result


def _inside(sources: dict[str, str], prefix: str) -> dict[str, str]:
    return {name: source.removeprefix(prefix) for name, source in sources.items() if source.startswith(prefix)}


def _stack_of(inside: Sequence[dict[str, str]]) -> str:
    """The path that all tensors of all blocks have before their block's number."""
    common: set[str] | None = None
    for index, names in enumerate(inside):
        for name in names:
            parts = name.split(".")
            paths = {".".join(parts[:p]) for p, part in enumerate(parts) if part == str(index)}
            common = paths if common is None else common & paths
    if not common or len(common) > 1:
        example = next(iter(inside[-1]), "nothing")
        raise FamilyError(
            f"the files do not number the blocks as the model does: block {len(inside) - 1} has {example}"
        )
    return common.pop()


def _order_of(memory: str, whole: Tensor, parts: dict[str, Tensor]) -> tuple[str, ...]:
    """The patterns of names that a tensor in memory is made of, in the order in which it is."""
    if len(parts) == 1:
        ((tail, part),) = parts.items()
        if torch.equal(whole, part):
            return (tail,)
        raise FamilyError(f"files keep {tail} in another form than transformers does ({memory})")
    patterns = list(dict.fromkeys(numbered(tail) for tail in parts))
    for names in (tuple(parts), tuple(patterns)):
        if len(names) <= _MOST_PARTS:
            for order in itertools.permutations(names):
                made = parts_of(order, whole) if whole.ndim > 1 or NUMBER not in order[0].split(".") else {}
                if made.keys() == parts.keys() and all(torch.equal(made[name], parts[name]) for name in parts):
                    return order
    raise FamilyError(f"transformers holds {memory} as one tensor, made of {', '.join(patterns[:4])} in an unknown way")


def numbered(tail: str) -> str:
    """The tail with its last whole number as `{n}`."""
    parts = tail.split(".")
    for position in reversed(range(len(parts))):
        if parts[position].isdigit():
            return ".".join([*parts[:position], NUMBER, *parts[position + 1 :]])
    return tail
