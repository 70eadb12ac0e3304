"""Heads that are more than a product: the lean loss gives the model's own loss, and its gradients in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel
from zoo import ZOO, build

from blockexpand.errors import TrainingError
from blockexpand.families import known_families
from blockexpand.families.family import HeadFacts
from blockexpand.live import loss as lean
from blockexpand.live.forward import RowBatch, check_head, hidden_states
from blockexpand.live.loss import linear_losses
from blockexpand.live.parts import head_of

# What each family's entry is set to, so that it matters on random weights.
SETTINGS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 5.0},
    "granitemoe": {"logits_scaling": 5.0},
    "granitemoeshared": {"logits_scaling": 5.0},
    "granitemoehybrid": {"logits_scaling": 5.0},
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "falcon_h1": {"lm_head_multiplier": 0.4},
    # Heads with a bias; the zoo moves biases away from zero.
    "phi": {},
    "phimoe": {},
    "gptj": {},
    "codegen": {},
    "ernie4_5_moe": {},
}


def model_of(family: str) -> Any:
    row = next(row for row in ZOO if row.family == family)
    return build(dataclasses.replace(row, settings={**row.settings, **SETTINGS[family]}))


def test_every_family_with_such_a_head_is_here() -> None:
    assert {name for name, family in known_families().items() if family.head != HeadFacts()} <= {*SETTINGS, "gemma3"}


def in_float64(model: PreTrainedModel) -> torch.nn.Module:
    """The model's output projection, made float64 and, where it was, no longer tied to the embeddings."""
    output = model.get_output_embeddings()
    for name, parameter in list(output.named_parameters()):
        output.register_parameter(name, torch.nn.Parameter(parameter.detach().double()))
    return output


def batch() -> RowBatch:
    torch.manual_seed(1)
    tokens_BT = torch.randint(3, 90, (2, 12))
    positions_BT = np.tile(np.arange(12), (2, 1))
    return RowBatch.of(tokens_BT.numpy(), positions_BT, np.ones((2, 12), dtype=bool), torch.device("cpu"))


@pytest.mark.parametrize("family", sorted(SETTINGS))
def test_loss_and_gradients_are_those_of_the_models_own_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_POSITIONS", 5)
    model, rows = model_of(family), batch()
    check_head(model, rows)
    output = in_float64(model)
    head = head_of(model)
    assert head.factor != 1.0 or head.soft_cap is not None or head.bias_V is not None
    hidden_BTD = hidden_states(model, rows).detach().double().requires_grad_()
    # The model's own logits from these very hidden states.
    handle = output.register_forward_pre_hook(lambda _module, _args: (hidden_BTD,))
    logits_BTV = model(rows.tokens_BT, position_ids=rows.positions_BT, use_cache=False).logits
    handle.remove()
    weights = [p for p in (output.weight, head.bias_V) if p is not None]
    expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), rows.targets_R)
    theirs = torch.autograd.grad(expected, [hidden_BTD, *weights], retain_graph=True)
    hidden_RD = rows.predicting(hidden_BTD)
    share_R = torch.full((len(hidden_RD),), 1 / len(hidden_RD), dtype=torch.float64)
    loss, _, _ = linear_losses(hidden_RD, head, rows.targets_R, share_R)
    ours = torch.autograd.grad(loss, [hidden_BTD, *weights])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_an_entry_that_the_family_file_does_not_name_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard: take the fact away, and the model's own logits refuse the head."""
    model, rows = model_of("cohere"), batch()
    without = dataclasses.replace(known_families()["cohere"], head=HeadFacts())
    monkeypatch.setattr("blockexpand.live.parts.known_families", lambda: {"cohere": without})
    with pytest.raises(TrainingError, match=r"logits of CohereForCausalLM are not what its head gives: .*[0-9]\.[0-9]"):
        check_head(model, rows)
