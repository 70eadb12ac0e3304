"""Models in memory that are not what a call expects: refused in words, and not changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockexpand import live
from blockexpand.errors import LiveError, PlanError
from blockexpand.expansion import expand, plan
from helpers import MakeBase, edit_config, load, tiny_model


@pytest.fixture
def expanded(tiny_base: MakeBase) -> Any:
    base = tiny_base("llama")
    return live.expand_live(load(base), plan(base, 2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_not_expanded_cannot_be_bypassed_detached_or_frozen(tiny_base: MakeBase, expanded: Any):
    model = load(tiny_base("llama"))
    for use in (live.detach, live.freeze, live.new_blocks, live.plan_of, lambda m: live.bypass(m).__enter__()):
        with pytest.raises(LiveError, match=r"this LlamaForCausalLM is not known to be expanded.*adopt\(model, plan\)"):
            use(model)
    with pytest.raises(LiveError, match="not known to be expanded"):
        live.plan_of(copy.deepcopy(expanded))


def test_a_model_is_not_detached_inside_a_bypass(expanded: Any):
    with live.bypass(expanded), live.bypass(expanded), pytest.raises(LiveError, match="inside 2 bypass"):
        live.detach(expanded)
    assert len(expanded.model.layers) == 6


def fresh(**settings: Any) -> nn.Module:
    return tiny_model("llama", dtype=torch.bfloat16, **settings)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: tiny_model("qwen2"), LiveError, "plan is for family 'llama', this Qwen2ForCausalLM is of 'qwen2'"),
        (lambda: fresh(blocks=5), LiveError, r"has 5 blocks \(its config says 5\); expected the 4 of the plan"),
        (lambda: fresh(intermediate_size=40), LiveError, r"block 0 .* mlp\.down_proj\.weight of shape \(32, 40\)"),
        (lambda: fresh(attention_bias=True), LiveError, r"self_attn\.q_proj\.bias of shape \(32,\), the plan has None"),
        (lambda: nn.Linear(2, 2), LiveError, "a Linear has no config"),
        (lambda: fresh().model, LiveError, r"no list of blocks at 'model\.layers' in a LlamaModel"),
    ],
)
def test_a_model_that_the_plan_does_not_fit_is_refused_and_not_changed(
    tiny_base: MakeBase, make: Any, error: type[Exception], words: str
):
    made = plan(tiny_base("llama"), 2)
    model = make()
    before = state(model)
    with pytest.raises(error, match=words):
        live.expand_live(model, made)
    assert equal_states(state(model), before)


def test_an_expanded_model_is_not_expanded_or_adopted_again(expanded: Any):
    made = live.plan_of(expanded)
    for again in (live.expand_live, live.adopt):
        with pytest.raises(LiveError, match=r"expanded already.*detach\(model\)"):
            again(expanded, made)


def test_a_folder_without_a_record_is_not_loaded(tiny_base: MakeBase):
    with pytest.raises(PlanError, match=r"has no blockexpand\.json"):
        live.load(tiny_base("llama"))


def test_a_folder_whose_weights_do_not_fit_its_config_is_not_loaded(tiny_base: MakeBase, tmp_path: Path):
    base = tiny_base("llama")
    expand(base, tmp_path / "out", plan(base, 2))
    edit_config(tmp_path / "out", num_hidden_layers=7)
    with pytest.raises(LiveError, match=r"lacks the tensor 'model\.layers\.6\..* \(9 in all\)"):
        live.load(tmp_path / "out")
