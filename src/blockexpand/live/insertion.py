"""New blocks into a loaded model, or knowledge of them into one that was loaded with them.

In: a transformers model and a plan for it. Out: the same object, deeper: deep copies of the donors inserted,
their residual writers zero, every part that knows its index renumbered, the config's entries rewritten.
Refused: a model that is expanded already, and one that the plan does not fit; then nothing has changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from blockexpand.checkpoint import locate_model
from blockexpand.errors import LiveError
from blockexpand.expansion import stack_entries
from blockexpand.families import Family, family_for, known_families
from blockexpand.families.modules import config_entries, load_model, parameters_of, put_stack, set_config, stack_of
from blockexpand.live.state import is_expanded, remember
from blockexpand.records.expansion import read_expansion
from blockexpand.records.plan import BlockTensor, Plan

_STARTS = {"zero": 0.0, "minus-one": -1.0}
"""What a residual writer is filled with, by what the plan says it starts as."""


def expand_live(model: nn.Module, plan: Plan) -> nn.Module:
    """Insert the plan's new blocks into the model, in place, and return it.

    Raises:
        LiveError: the plan does not fit the model.
    """
    if plan.init == "random":
        raise LiveError(
            "the plan starts new blocks with init 'random', and those numbers are drawn by expand; expected init "
            "'identity' or 'copy' for a model in memory; expand the checkpoint on disk and load it"
        )
    family = _fitting_family(model, plan, plan.base.num_blocks)
    old = list(stack_of(model, family))
    new = {block.id: _new_block(old[block.donor], plan, family, block.donor) for block in plan.new_blocks}
    return _put_in(model, plan, family, new)


def insert_blocks(model: nn.Module, plan: Plan, new: Mapping[str, nn.Module]) -> nn.Module:
    """Insert these blocks, by their ids in the plan, as they are, in place; return the model.

    Raises:
        LiveError: the plan does not fit the model.
    """
    return _put_in(model, plan, _fitting_family(model, plan, plan.base.num_blocks), new)


def _put_in(model: nn.Module, plan: Plan, family: Family, new: Mapping[str, nn.Module]) -> nn.Module:
    old = list(stack_of(model, family))
    changes = stack_entries(family, config_entries(model), plan.sources)
    stack = [new[e.new.id] if e.new is not None else old[e.source] for e in plan.stack]
    set_config(model, family, changes)
    put_stack(model, family, stack)
    remember(model, plan, family)
    return model


def adopt(model: nn.Module, plan: Plan) -> nn.Module:
    """Make known which blocks of a model that was loaded from an expanded folder are new; return it.

    Raises:
        LiveError: the plan does not fit the model.
    """
    family = _fitting_family(model, plan, plan.num_blocks)
    remember(model, plan, family)
    return model


def load(folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[nn.Module, Plan]:
    """The model of an expanded folder, in eval mode, and its plan; on the device "meta", without its values.

    Weights are of the checkpoint's own type where no `dtype` is given, as transformers has them.

    Raises:
        PlanError: the folder has no record of an expansion.
        LiveError: transformers cannot load it, or it does not fit its record.
    """
    folder = locate_model(folder)
    plan = read_expansion(folder).plan
    known = known_families().get(plan.base.family)
    # A family that has no file is found among language models only.
    model = load_model(folder, dtype=dtype, device=device, loader=known.loader if known else "text")
    return adopt(model, plan), plan


@torch.no_grad()
def _new_block(donor: nn.Module, plan: Plan, family: Family, index: int) -> nn.Module:
    block = copy.deepcopy(donor)
    parameters = dict(block.named_parameters())
    for tensor in plan.tensors_of(index):
        if tensor.starts != "donor":
            parameters[family.block.name_in_memory(tensor.tail)].fill_(_STARTS[tensor.starts])
    for parameter in parameters.values():
        parameter.grad = None
    return block


def _fitting_family(model: nn.Module, plan: Plan, num_blocks: int) -> Family:
    """The model's family, after every check that the plan is for a model like this one, this deep."""
    name = type(model).__name__
    if is_expanded(model):
        raise LiveError(f"this {name} is expanded already; expected a base model; call detach(model) first")
    family = family_for(config_entries(model), name)
    if family.name != plan.base.family:
        raise LiveError(
            f"the plan is for family {plan.base.family!r}, this {name} is of {family.name!r}; expected the same; make "
            "a plan for this model"
        )
    stack = stack_of(model, family)
    if len(stack) != num_blocks or family.depth(config_entries(model)) != num_blocks:
        raise LiveError(
            f"this {name} has {len(stack)} blocks (its config says {family.depth(config_entries(model))}); expected "
            f"the {num_blocks} of the plan; make a plan for this model"
        )
    olds = range(num_blocks) if num_blocks == plan.base.num_blocks else plan.sources
    for index, (block, old) in enumerate(zip(stack, olds, strict=True)):
        _check_block(index, block, family, plan.tensors_of(old), name)
    return family


def _check_block(index: int, block: nn.Module, family: Family, tensors: Sequence[BlockTensor], model_name: str) -> None:
    """Refuse a block that does not have the plan's tensors.

    Of several tensors held as one, and of quantised ones (which are no floats), the shape is not compared.
    """
    parameters = parameters_of(block, family, tensors)
    fused = {group.memory for group in family.block.in_memory}
    fused |= {n for n, p in parameters.items() if not p.is_floating_point()}
    found = {n: tuple(p.shape) for n, p in parameters.items()}
    expected = {family.block.name_in_memory(t.tail): t.shape for t in tensors if t.parameter}
    expected = {n: found.get(n, shape) if n in fused else shape for n, shape in expected.items()}
    wrong = [tail for tail in {**expected, **found} if expected.get(tail) != found.get(tail)]
    if wrong:
        raise LiveError(
            f"block {index} of this {model_name} has {wrong[0]} of shape {found.get(wrong[0])}, the plan has "
            f"{expected.get(wrong[0])}; expected the same tensors; make a plan for this model"
        )
