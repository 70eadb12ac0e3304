"""From the last hidden states to logits: the product of the head, and what some families do after it.

In: a transformers causal language model. Out: its `Head`: the weight, a bias where there is one, a factor
(Cohere, Granite, Falcon H1) and a soft cap (Gemma 2), as the family's file says. Refused: a model whose own
logits are not what this head gives (`check_head`, in forward.py).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockexpand.families.entries import entry
from blockexpand.live.parts import served_family

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
