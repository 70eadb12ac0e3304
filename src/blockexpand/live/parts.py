"""The parts of a transformers causal language model that training goes through: decoder, blocks, head.

In: a model, bare or with adapters inside. Out: its decoder (embeddings, blocks, last norm), its blocks, and its
`Head`: from the last hidden states to logits, with what some families do after the product (a bias; a factor in
Cohere, Granite, Falcon H1; a soft cap in Gemma 2), as the family's file says. A model of a family without a file says
itself where its decoder is, and is taken to have a plain head. Refused: a model in which no list of blocks is found.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.families import Family, known_families
from blockexpand.families.entries import entry


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


# C = positions of one chunk, D = hidden size, V = vocabulary.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """logits = cap(factor * (hidden @ weight.T + bias)), where cap(z) = soft_cap * tanh(z / soft_cap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    factor: float = 1.0
    soft_cap: float | None = None
    """The largest size a logit can have; None = as it comes."""

    def logits_CV(self, hidden_CD: Tensor) -> Tensor:
        """The logits of some hidden states, float32 (float64 for float64), in memory of their own."""
        product_CV = hidden_CD @ self.weight_VD.to(hidden_CD.dtype).T
        logits_CV = product_CV if product_CV.dtype == torch.float64 else product_CV.float()
        if self.bias_V is not None:
            logits_CV += self.bias_V
        if self.factor != 1.0:
            logits_CV *= self.factor
        if self.soft_cap is not None:
            logits_CV.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits_CV

    def slopes_CV(self, logits_CV: Tensor) -> Tensor | None:
        """d logits / d product at these logits; None where it is `factor` everywhere."""
        if self.soft_cap is None:
            return None
        return logits_CV.div(self.soft_cap).square_().neg_().add_(1.0).mul_(self.factor)


def head_of(model: PreTrainedModel) -> Head:
    """The head of a model, by its modules and by what its family's file says of its config.

    A model of a family without a file is taken to have a plain head; `check_head` finds out when it has not.
    """
    module = model.get_output_embeddings()
    weight_VD, bias_V = module.weight, module._parameters.get("bias")
    family = served_family(model)
    if family is None:
        return Head(weight_VD=weight_VD, bias_V=bias_V)
    facts, text = family.head, family.text(model.config.to_dict())
    factor, divisor, soft_cap = (
        entry(text, key) if key else None for key in (facts.factor_key, facts.divisor_key, facts.soft_cap_key)
    )
    return Head(
        weight_VD=weight_VD,
        bias_V=bias_V,
        factor=(1.0 if factor is None else factor) / (1.0 if divisor is None else divisor),
        soft_cap=soft_cap,
    )
