"""Where a model keeps its blocks, which config entry counts them, and which blocks are of one kind.

In: every entry of a config. Out: a frozen `Layout`, and configs of other depths. It is found by trying: a model
without memory is built once as deep as the config says and once with a block less, and what became shorter is the
stack. Refused: a depth that no single entry states, and more than one list of modules that grows with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from blockexpand.errors import FamilyError
from blockexpand.families.discovery.trial_model import bare_model

INDEX = "layer_idx"
"""transformers' name for a block's index."""

Signature = tuple[tuple[str, Hashable], ...]
"""What a block is made of: the names and shapes of its tensors and the settings of its parts, its index apart."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the blocks are."""

    depth_key: str
    """The config entry with their number."""
    depth: int
    """That number."""
    lists: tuple[str, ...]
    """The config entries with one item a block."""
    module: str
    """The list of blocks in the model."""

    def resized(self, config: dict[str, Any], sources: Sequence[int]) -> dict[str, Any]:
        """The config of a stack whose block i has the list items of this config's block `sources[i]`."""
        lists = {key: [config[key][source] for source in sources] for key in self.lists}
        return {**config, **lists, self.depth_key: len(sources)}


def find_stack(config: dict[str, Any], harmless: Iterable[str]) -> Layout:
    """Find the blocks; `harmless` are lists that say nothing about single blocks, whatever their length.

    Raises:
        FamilyError: there is not exactly one list of modules that one entry makes longer and shorter.
    """
    lengths = _module_lists(bare_model(config))
    reason = "no number in it is that of a list of modules"
    for key in sorted(config, key=lambda name: ("layer" not in name, name)):
        depth = config[key]
        if not isinstance(depth, int) or isinstance(depth, bool) or depth not in lengths.values():
            continue
        lists = tuple(k for k, v in config.items() if k not in harmless and isinstance(v, list) and len(v) == depth)
        sources = list(range(depth - 1)) if depth > 1 else [0, 0]
        found = Layout(depth_key=key, depth=depth, lists=lists, module="")
        shorter = found.resized(config, sources)
        try:
            other = _module_lists(bare_model(shorter))
        except FamilyError as error:
            reason = f"with {len(sources)} for {key}, {error}"
            continue
        grown = [path for path, n in lengths.items() if n == depth and other.get(path) == len(sources)]
        grown = [path for path in grown if not any(path.startswith(f"{outer}.") for outer in grown)]
        if len(grown) > 1:
            raise FamilyError(f"{key} is the length of {' and '.join(grown)}, and one list of blocks is expected")
        if grown and lists and _length({**shorter, key: depth}, grown[0]) == len(sources):
            reason = f"it is the length of {' and '.join(lists)}"  # whatever the number says
        elif grown:
            return dataclasses.replace(found, module=grown[0])
    raise FamilyError(f"no config entry could be found that states the number of blocks ({reason})")


def _length(config: dict[str, Any], path: str) -> int | None:
    """How many blocks the stack of this config has; None where none can be built."""
    with contextlib.suppress(FamilyError):
        return _module_lists(bare_model(config)).get(path)


def _module_lists(model: nn.Module) -> dict[str, int]:
    return {name: len(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}


def signatures(model: nn.Module, path: str) -> list[Signature]:
    """What each block is made of."""
    stack = model.get_submodule(path)
    facts = [_facts(block) for block in stack.children()]
    kept = [key for key in dict.fromkeys(k for f in facts for k in f) if not _is_index(key, facts)]
    return [tuple((key, fact.get(key)) for key in kept) for fact in facts]


def _facts(block: nn.Module) -> dict[str, Hashable]:
    facts: dict[str, Hashable] = {f"{name} shape": tuple(p.shape) for name, p in block.named_parameters()}
    facts |= {f"{name} shape": tuple(b.shape) for name, b in block.named_buffers()}
    for name, module in block.named_modules():
        facts[f"{name} class"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | None) and key != "training" and key != INDEX:
                facts[f"{name} {key}"] = value
    return facts


def _is_index(key: str, facts: Sequence[dict[str, Hashable]]) -> bool:
    """Whether it counts the blocks: then it is not what makes one differ from another."""
    held = [(i, value) for i, fact in enumerate(facts) if isinstance(value := fact.get(key), int)]
    return len(held) > 1 and len({value - i for i, value in held}) == 1 and not isinstance(held[0][1], bool)


def kinds(found: Sequence[Signature]) -> list[int]:
    """For each block, the first block that is made like it."""
    return [found.index(signature) for signature in found]


def misplaced(before: dict[str, Any], after: dict[str, Any], module: str, sources: Sequence[int]) -> str | None:
    """The first block of the deeper model that is not of its source's kind, in words, or None when all are.

    Raises:
        FamilyError: transformers cannot build one of the two.
    """
    old, new = signatures(bare_model(before), module), signatures(bare_model(after), module)
    # An index in the one need not be found to be one in the other when only two blocks have it.
    shared = {key for key, _ in old[0]} & {key for key, _ in new[0]}
    for position, source in enumerate(sources):
        pair = old[source], new[position]
        first, second = ({k: v for k, v in signature if k in shared} for signature in pair)
        for key in first:
            if first[key] != second[key]:
                return (
                    f"block {source} has {key.strip()} {first[key]!r}, and as block {position} of {len(sources)} it "
                    f"would have {second[key]!r}"
                )
    return None
