"""What was found about a model, as the plain data of a family file.

In: names, silencers and layout. Out: a dictionary that the loader of family files reads. Refused, as `FamilyError`
with the reason: blocks whose tensors depend on their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from blockexpand.errors import FamilyError
from blockexpand.families.discovery.layout import Layout
from blockexpand.families.discovery.tensor_names import Names
from blockexpand.families.discovery.trial_model import random_model
from blockexpand.families.family import NUMBER

TIE = "tie_word_embeddings"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that was found out."""

    config: dict[str, Any]
    """Every entry of the model's own config."""
    small: dict[str, Any]
    """Those of the small model."""
    layout: Layout
    """Where the blocks are."""
    names: Names
    """What files call the small model's tensors."""
    silencing: tuple[dict[str, float], ...]
    """For each of its blocks, the tensors in memory that silence it, and the number each then holds."""


def block_facts(found: Found, bare: nn.Module, model: PreTrainedModel) -> dict[str, Any]:
    """The `block` table: `bare` is the model in its own size, `model` the small one.

    Raises:
        FamilyError: the small model's blocks have other tensors than the model's own.
    """
    patterns = _Patterns(found, bare, model)
    parameters = {
        name for block in model.get_submodule(found.layout.module).children() for name, _ in block.named_parameters()
    }
    tails = [
        dict.fromkeys(patterns.of(i, t) for t, m in block.items() if m in parameters)
        for i, block in enumerate(found.names.blocks)
    ]
    buffers = dict.fromkeys(
        patterns.of(i, t) for i, block in enumerate(found.names.blocks) for t, m in block.items() if m not in parameters
    )
    required = [t for t in tails[0] if all(t in other for other in tails)]
    silent: dict[str, float] = {}
    for i, block in enumerate(found.names.blocks):
        for tail, memory in block.items():
            if memory in found.silencing[i]:
                silent[patterns.of(i, tail)] = found.silencing[i][memory]
    return {
        "required": required,
        "buffers": list(buffers),
        "choices": _choices([[t for t in one if t not in required] for one in tails]),
        "writers": list(silent),
        "minus_one": [tail for tail, value in silent.items() if value == -1.0],
        "in_memory": [{"files": list(files), "memory": memory} for memory, files in found.names.order.items()],
        "experts": any("experts" in tail.split(".") for one in tails for tail in one),
    }


class _Patterns:
    """Tails of the small model's files as names that also the model's own have: `{n}` where there are more of them."""

    def __init__(self, found: Found, bare: nn.Module, model: PreTrainedModel) -> None:
        self._found = found
        path = found.layout.module
        self._own = [_tails(block) for block in bare.get_submodule(path).children()]
        self._small = [_tails(block) for block in model.get_submodule(path).children()]
        for i, small in enumerate(self._small):
            missing = {self._counted(i, t) for t in small} ^ {self._counted(i, t) for t in self._own[i]}
            if missing:
                raise FamilyError(f"which tensors a block has depends on its sizes, e.g. {min(missing)}")

    def of(self, block: int, tail: str) -> str:
        """The pattern of a tail of a small block's files."""
        memory = self._found.names.blocks[block][tail]
        patterns = self._found.names.order.get(memory)
        if patterns is None:
            return self._counted(block, tail)
        return next(p for p in patterns if p == tail or p == _replaced(tail, _position(p)))

    def _counted(self, block: int, tail: str) -> str:
        """The tail with `{n}` for a number that the sizes decide."""
        for position, part in enumerate(tail.split(".")):
            if part.isdigit():
                pattern = _replaced(tail, position)
                own, small = (
                    {t.split(".")[position] for t in tails if _replaced(t, position) == pattern}
                    for tails in (self._own[block], self._small[block])
                )
                if own != small:
                    return pattern
        return tail


def _tails(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_parameters()]


def _replaced(tail: str, position: int) -> str:
    parts = tail.split(".")
    if not 0 <= position < len(parts) or not parts[position].isdigit():
        return tail
    return ".".join([*parts[:position], NUMBER, *parts[position + 1 :]])


def _position(pattern: str) -> int:
    parts = pattern.split(".")
    return parts.index(NUMBER) if NUMBER in parts else -1


def _choices(own: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Where blocks differ: tensors that come together are one option, those that rule each other out one choice."""
    holders: dict[tuple[int, ...], list[str]] = {}
    for tail in dict.fromkeys(t for tails in own for t in tails):
        holders.setdefault(tuple(i for i, tails in enumerate(own) if tail in tails), []).append(tail)
    choices: list[dict[str, Any]] = []
    left = dict(holders)
    while left:
        blocks = next(iter(left))
        together = [(blocks, left.pop(blocks))]
        for other in list(left):
            if not set(other) & {i for held, _ in together for i in held}:
                together.append((other, left.pop(other)))
        options = [{"name": f"as in block {held[0]}", "tensors": tails} for held, tails in together]
        covered = {i for held, _ in together for i in held}
        rest = next((i for i in range(len(own)) if i not in covered), None)
        if rest is not None:
            options.append({"name": f"as in block {rest}", "tensors": []})
        choices.append({"what": f"what differs between blocks ({len(choices) + 1})", "options": options})
    return choices


def outer_facts(found: Found, model: PreTrainedModel, tie_default: bool) -> dict[str, Any]:
    """The `outer` table."""
    pairs = {tied: _tied_pairs(random_model({**found.small, TIE: tied})) for tied in (False, True)}
    switched = {name: source for name, source in pairs[True].items() if name not in pairs[False]}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    written = {name for name, memory in found.names.outer.items() if memory in parameters}
    head = _name_of(model, model.get_output_embeddings())
    facts: dict[str, Any] = {
        "required": [name for name in found.names.outer if name in written and name not in switched],
        "optional": [
            *(n for n in found.names.outer if n not in written),
            *(n for n in pairs[False] if n not in written),
        ],
        "matrices": [pairs[False].get(head, head)] if head else [],
        "tied": [
            {"tensor": name, "source": source, "switch": TIE, "switch_default": tie_default}
            for name, source in switched.items()
        ],
    }
    known = {*facts["required"], *facts["optional"], *switched}
    facts["matrices"] = [name for name in facts["matrices"] if name in known]
    return facts


def _tied_pairs(model: PreTrainedModel) -> dict[str, str]:
    """Names of tensors that are another one, and that one: the embeddings where they take part."""
    first = _name_of(model, model.get_input_embeddings())
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {
        name: source
        for names in groups.values()
        for source in [first if first in names else names[0]]
        for name in names
        if name != source
    }


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    """The name of a module's weight."""
    names = (name for name, other in model.named_modules() if other is module)
    name = next(names, None) if module is not None else None
    return f"{name}.weight" if name is not None else ""


def rules(found: Found, stated: dict[str, Any], spelled: dict[str, str]) -> list[dict[str, Any]]:
    """The `per_layer` tables; `spelled` says how the config at hand spells an entry."""
    tables: list[dict[str, Any]] = []
    for key in found.layout.lists:
        name, items = spelled.get(key, key), found.config[key]
        if stated.get(name) is not None:
            tables.append({"kind": "copy-from-donor", "key": name})
        elif any(item != items[0] for item in items):
            tables.append({"kind": "written-out", "key": name, "items": items})
    return tables
