"""The parts of a transformers causal language model that training goes through: decoder and blocks.

In: a model, bare or with adapters inside. Out: its decoder (embeddings, blocks, last norm) and its blocks. Where
they are is a fact of the family's file; a model of a family without one says it itself (`get_decoder`).
Refused: a model in which no list of blocks is found.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.families import Family, known_families


def served_family(model: PreTrainedModel) -> Family | None:
    """The family whose file serves the model; None when there is none."""
    model_type = model.config.model_type
    return next((family for family in known_families().values() if model_type in family.model_types), None)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """What gives the last hidden states."""
    family = served_family(model)
    if family is None:
        return model.get_decoder()
    # Not get_decoder(): on Llama 4 it gives the whole model back, head and all (transformers 5.24).
    return model.get_submodule(family.stack.module.rpartition(".")[0])


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks, from bottom to top.

    Raises:
        TrainingError: there is no list of blocks in it.
    """
    family = served_family(model)
    if family is not None:
        return list(cast(nn.ModuleList, model.get_submodule(family.stack.module)))
    lists = [child for child in decoder_of(model).children() if isinstance(child, nn.ModuleList)]
    if len(lists) != 1:
        raise TrainingError(
            f"a {type(model).__name__} has {len(lists)} lists of modules in its decoder; expected one, its blocks; "
            f"add a family file for {model.config.model_type!r}"
        )
    return list(lists[0])
