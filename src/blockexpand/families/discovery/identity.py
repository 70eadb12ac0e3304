"""The small part of the proof, on a small model: put copies of its blocks in, silent, and compare.

In: a small model that runs, its layout, and what silences each of its blocks. Out: nothing, when the deeper model
gives the same logits bit for bit, without a cache and while it generates with one, built anew by its config and with
blocks inserted in memory. Refused, as `FamilyError` with the reason, when it does not.

Shapes: B = 1 sequence, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import FamilyError
from blockexpand.families.discovery.layout import Layout, kinds, misplaced, signatures
from blockexpand.families.discovery.trial_model import attempted, bare_model, random_model, run
from blockexpand.families.family import Family
from blockexpand.families.modules import greedy, put_stack, set_config

GENERATED_TOKENS = 6

Silencers = Sequence[dict[str, float]]
"""For each block, its tensors in memory that silence it, and the number each then holds."""


def sayable(config: dict[str, Any], layout: Layout) -> list[list[int]]:
    """Stacks with copies that the config can state: every block twice, or else one with a copy of each kind.

    Raises:
        FamilyError: there are none.
    """
    depth = config[layout.depth_key]
    twice = [block for block in range(depth) for _ in range(2)]
    reason = _moved(config, layout, twice)
    if reason is None:
        return [twice]
    made = kinds(signatures(bare_model(config), layout.module))
    stacks: dict[int, list[int]] = {}
    for block in range(depth):
        sources = [*range(block + 1), *range(block, depth)]
        if made[block] not in stacks and _moved(config, layout, sources) is None:
            stacks[made[block]] = sources
    if not stacks:
        raise FamilyError(f"blocks change wherever a copy is put: {reason}")
    return list(stacks.values())


def _moved(config: dict[str, Any], layout: Layout, sources: Sequence[int]) -> str | None:
    try:
        return misplaced(config, layout.resized(config, sources), layout.module, sources)
    except FamilyError as error:
        return str(error)


def prove(model: PreTrainedModel, config: dict[str, Any], layout: Layout, family: Family, silencers: Silencers) -> None:
    """Compare with deeper models: built by transformers from the config, as it does with an expanded folder, and made
    by putting silent copies into the stack, as on a live model.

    Raises:
        FamilyError: one of them is another function.
    """
    expected = _answers(model)
    for sources in sayable(config, layout):
        inserted = _inserted(model, config, sources, layout, family, silencers)
        deeper = random_model(layout.resized(config, sources))
        state = inserted.state_dict()
        for name, tensor in deeper.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                raise FamilyError(
                    f"outside the blocks {name} changes with the depth: {list(tensor.shape)} in a deeper model"
                )
        deeper.load_state_dict(state)
        if not _same(expected, _answers(deeper)):
            raise FamilyError(
                "a deeper model with silent copies of its blocks gives other logits, without a cache or through it: "
                "its computation uses a block's index or the depth"
            )
        if not _same(expected, _answers(inserted)):
            raise FamilyError(
                "a model in memory is another function after copies of its blocks were put in, though one that is "
                "built so deep is not: its blocks keep their index where it cannot be renumbered"
            )


def _answers(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    plain_BTV = run(model, tokens(model))
    with attempted("a tiny model of it does not generate with a cache"):
        _, logits = greedy(model, tokens(model), GENERATED_TOKENS)
    return plain_BTV, torch.stack(logits)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def tokens(model: PreTrainedModel) -> Tensor:
    """A fixed sequence, longer than the small models' windows."""
    size = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    return torch.randint(3, size, (1, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _inserted(
    model: PreTrainedModel,
    config: dict[str, Any],
    sources: Sequence[int],
    layout: Layout,
    family: Family,
    silencers: Silencers,
) -> PreTrainedModel:
    """A copy of the model, of this config, with silent copies in its stack."""
    entries = layout.resized(config, sources)
    deeper = copy.deepcopy(model)
    old = list(deeper.get_submodule(layout.module).children())
    blocks = []
    for position, source in enumerate(sources):
        block = old[source]
        if position and sources[position - 1] == source:
            block = copy.deepcopy(block)
            for name, value in silencers[source].items():
                block.get_parameter(name).fill_(value)
        blocks.append(block)
    set_config(deeper, family, {key: entries[key] for key in (*layout.lists, layout.depth_key)})
    put_stack(deeper, family, blocks)
    return deeper
