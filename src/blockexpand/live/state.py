"""What is known of each expanded model in this process: its plan and its new blocks.

The knowledge is kept beside the model, not on it: a model is looked up, never probed, and forgetting the
model forgets the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from blockexpand.checkpoint import num_elements
from blockexpand.errors import LiveError
from blockexpand.families import Family
from blockexpand.families.modules import as_in_files, parameters_of, stack_of
from blockexpand.records.plan import SILENT, Plan


@dataclass(kw_only=True)
class Expanded:
    """One expanded model, and which of its new blocks are off."""

    plan: Plan
    """Which blocks are new."""
    family: Family
    """Where its blocks are."""
    blocks: tuple[nn.Module, ...]
    """The whole stack, old and new, from bottom to top; also while the new ones are bypassed."""
    off: frozenset[str] = frozenset()
    """The new blocks that are off, by id."""
    of_base: dict[str, Any] = field(default_factory=dict)
    """Once one was off: the text settings that differ, as the base has them."""
    of_whole: dict[str, Any] = field(default_factory=dict)
    """And as the model has them when no block is off."""
    modes: dict[str, bool] = field(default_factory=dict)
    """For each block that is off, whether its stack was in train mode when it went."""
    num_bypasses: int = 0
    """How many bypasses it is in; only the outermost changes anything."""

    @property
    def old(self) -> tuple[nn.Module, ...]:
        """The base's blocks."""
        return tuple(self.blocks[position] for position in self.plan.old_to_new)

    @property
    def new(self) -> dict[str, nn.Module]:
        """The new blocks by id."""
        return {block.id: self.blocks[block.position] for block in self.plan.new_blocks}


_EXPANDED: WeakKeyDictionary[nn.Module, Expanded] = WeakKeyDictionary()


def remember(model: nn.Module, plan: Plan, family: Family) -> None:
    """Note that the model's stack, as it is now, is the plan's."""
    _EXPANDED[model] = Expanded(plan=plan, family=family, blocks=tuple(stack_of(model, family)))


def forget(model: nn.Module) -> None:
    """The model is its base again."""
    del _EXPANDED[model]


def switched_off(model: nn.Module) -> frozenset[str]:
    """The ids of the new blocks that are off."""
    return _EXPANDED[model].off if model in _EXPANDED else frozenset()


def is_expanded(model: nn.Module) -> bool:
    """Whether the model was expanded or adopted."""
    return model in _EXPANDED


def expanded(model: nn.Module) -> Expanded:
    """What is known of the model.

    Raises:
        LiveError: nothing is.
    """
    if model not in _EXPANDED:
        raise LiveError(
            f"this {type(model).__name__} is not known to be expanded; expected one from expand_live or load; call "
            "adopt(model, plan) if it was loaded from an expanded folder in another way"
        )
    return _EXPANDED[model]


def writers(model: nn.Module) -> dict[str, float]:
    """The full names, in memory, of the new blocks' residual writers, each with the value at which it writes nothing.

    That is 0, and -1 for a norm's gain that is kept as gain minus one.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    known = expanded(model)
    name = known.family.block.name_in_memory
    return {
        f"{known.family.stack.module}.{block.position}.{name(t.tail)}": -1.0 if t.starts == "minus-one" else 0.0
        for block in known.plan.new_blocks
        for t in known.plan.tensors_of(block.donor)
        if t.starts in SILENT
    }


def tensors_on_disk(model: nn.Module, family: Family, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The new blocks' parameters by the names that the files have; `family` is spelled as the files are.

    With `values`, those, by the names that `freeze` gives, in the place of the model's own.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    known = expanded(model)
    tensors: dict[str, Tensor] = {}
    for block in known.plan.new_blocks:
        planned = known.plan.tensors_of(block.donor)
        for tail, parameter in parameters_of(known.blocks[block.position], known.family, planned).items():
            value = parameter if values is None else values[f"{known.family.stack.module}.{block.position}.{tail}"]
            tensors |= as_in_files(family, block.position, tail, value.detach())
    return tensors


def plan_of(model: nn.Module) -> Plan:
    """The plan by which the model was expanded.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    return expanded(model).plan


def new_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The new blocks by their ids in the plan, from bottom to top.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    return expanded(model).new


def freeze(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Let exactly the new blocks train; give back their parameters with their full names.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    known = expanded(model)
    model.requires_grad_(False)
    path, name = known.family.stack.module, known.family.block.name_in_memory
    trainable, num_tensors, num_planned = [], 0, 0
    for block in known.plan.new_blocks:
        tensors = known.plan.tensors_of(block.donor)
        for tail, parameter in parameters_of(known.blocks[block.position], known.family, tensors).items():
            parameter.requires_grad_(True)
            trainable.append((f"{path}.{block.position}.{tail}", parameter))
        num_tensors += len({name(t.tail) for t in tensors if t.parameter})
        num_planned += sum(num_elements(t.shape) for t in tensors if t.parameter)
    assert len(trainable) == num_tensors, f"{len(trainable)} tensors train, the plan has {num_tensors}"
    num_trained = sum(parameter.numel() for _, parameter in trainable)
    assert num_trained == num_planned, f"{num_trained:,} parameters train, the plan has {num_planned:,}"
    return trainable
