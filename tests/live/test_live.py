"""Models in memory: the same deeper model as on disk, and its base inside it, bit for bit."""

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
from blockexpand.records.plan import Plan
from helpers import MakeBase, edit_config, load, tiny_model

WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral window": ("mistral", {"sliding_window": 8}),
    "qwen2 windows": ("qwen2", WINDOWS),
    "qwen3": ("qwen3", {}),
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "interleaved": {"blocks": 2},
    "prefix": {"blocks": 2, "placement": "prefix"},
    "explicit": {"after": (-1, 1, 3, 3)},
}
TOKENS = (torch.arange(24)[None] * 7) % 96


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest, tiny_base: MakeBase) -> Path:
    family, settings = MODELS[request.param]
    return tiny_base(family, **settings)


@pytest.fixture(params=PLACEMENTS)
def made(request: pytest.FixtureRequest, base: Path) -> Plan:
    return plan(base, **PLACEMENTS[request.param])


def answers(model: Any) -> list[Tensor]:
    """Logits of a whole sequence, hidden states, logits through a cache, and a greedy continuation."""
    with torch.no_grad():
        whole = model(TOKENS, use_cache=False, output_hidden_states=True)
        start = model(TOKENS[:, :20], use_cache=True)
        rest = model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)
        words = model.generate(TOKENS[:, :12], max_new_tokens=12, do_sample=False, eos_token_id=None)
    return [whole.logits, *whole.hidden_states, start.logits, rest.logits, words]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def train(model: Any, learning_rate: float = 0.5) -> None:
    """Two steps large enough that nothing can stay the same by luck."""
    parameters = [parameter for _, parameter in live.freeze(model)]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    for _ in range(2):
        model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_expanding_in_memory_is_expanding_on_disk(base: Path, made: Plan, tmp_path: Path):
    expand(base, tmp_path / "out", made)
    from_disk, in_memory = load(tmp_path / "out"), load(base)
    before = answers(in_memory)
    assert live.expand_live(in_memory, made) is in_memory
    assert equal_states(state(from_disk), state(in_memory))
    found = answers(in_memory)
    assert same(found, answers(from_disk))
    # The new blocks only repeat the hidden states below them.
    assert len(found) == len(before) + len(made.new_blocks)
    assert same([found[0], *found[-3:]], [before[0], *before[-3:]])
    ignored = {"_name_or_path", "dtype"}
    configs = [model.config.to_dict() for model in (from_disk, in_memory)]
    assert {k: v for k, v in configs[0].items() if k not in ignored} == {
        k: v for k, v in configs[1].items() if k not in ignored
    }
    indices = [block.self_attn.layer_idx for block in in_memory.model.layers]
    assert indices == list(range(made.num_blocks))
    kinds = [vars(block.self_attn).get("sliding_window") for block in in_memory.model.layers]
    assert kinds == [vars(block.self_attn).get("sliding_window") for block in from_disk.model.layers]


def test_bypass_is_the_base_bit_for_bit_whatever_the_new_blocks_learned(base: Path, made: Plan):
    model = load(base)
    expected, config, tensors = answers(model), model.config.to_dict(), state(model)
    live.expand_live(model, made)
    train(model)
    trained = answers(model)
    assert not torch.equal(trained[0], expected[0])
    with live.bypass(model) as bypassed:
        assert bypassed is model
        assert same(answers(model), expected)
        assert model.config.to_dict() == config
        assert equal_states(state(model), tensors)
    assert same(answers(model), trained)
    assert model.config.num_hidden_layers == made.num_blocks


def test_a_model_loaded_from_disk_can_be_bypassed_too(base: Path, made: Plan, tmp_path: Path):
    expand(base, tmp_path / "out", made)
    model, read = live.load(tmp_path / "out", dtype=torch.bfloat16)
    assert read == made == live.plan_of(model)
    assert not model.training
    train(model)
    with live.bypass(model):
        assert same(answers(model), answers(load(base)))


def test_detach_gives_the_base_back_for_good(base: Path, made: Plan):
    model = load(base)
    expected, config, tensors = answers(model), model.config.to_dict(), state(model)
    live.expand_live(model, made)
    train(model)
    trained = {name: state(block) for name, block in live.new_blocks(model).items()}
    removed = live.detach(model)
    assert same(answers(model), expected)
    assert model.config.to_dict() == config
    assert equal_states(state(model), tensors)
    assert list(removed) == [block.id for block in made.new_blocks]
    assert all(equal_states(removed[name], trained[name]) for name in removed)
    with pytest.raises(LiveError, match="not known to be expanded"):
        live.plan_of(model)
    live.expand_live(model, made)
    assert torch.equal(answers(model)[0], expected[0])


# --- one model is enough for the rest ----------------------------------------------------------------


@pytest.fixture
def expanded(tiny_base: MakeBase) -> Any:
    base = tiny_base("llama")
    return live.expand_live(load(base), plan(base, 2))


def test_bypass_may_be_nested(expanded: Any):
    train(expanded)
    inside = []
    with live.bypass(expanded):
        inside.append(answers(expanded))
        with live.bypass(expanded):
            inside.append(answers(expanded))
        inside.append(answers(expanded))
        assert len(expanded.model.layers) == 4
    assert len(expanded.model.layers) == 6
    assert same(inside[0], inside[1])
    assert same(inside[0], inside[2])
    with live.bypass(expanded):
        assert same(answers(expanded), inside[0])


def test_an_error_inside_leaves_the_model_whole(expanded: Any):
    train(expanded)
    before = answers(expanded)
    with pytest.raises(ZeroDivisionError), live.bypass(expanded), live.bypass(expanded):
        raise ZeroDivisionError
    assert same(answers(expanded), before)
    assert len(expanded.model.layers) == 6


def test_bypass_works_in_training_mode_and_gradient_flows_afterwards(expanded: Any):
    live.freeze(expanded)
    expanded.train()
    with torch.no_grad(), live.bypass(expanded):
        base_logits = expanded(TOKENS).logits
    assert all(block.training for block in expanded.model.layers)
    loss = nn.functional.mse_loss(expanded(TOKENS).logits.float(), base_logits.float() + 1)
    loss.backward()
    for block in live.new_blocks(expanded).values():
        assert float(block.get_submodule("mlp.down_proj").weight.grad.abs().sum()) > 0


def test_switching_modes_inside_reaches_the_bypassed_blocks(expanded: Any):
    expanded.train()
    with live.bypass(expanded):
        expanded.eval()
    assert not any(module.training for module in expanded.modules())
    expanded.model.layers[2].train()
    with live.bypass(expanded):
        pass
    assert expanded.model.layers[2].training


def test_hidden_states_asked_for_before_expanding_come_once_each(tiny_base: MakeBase):
    base = tiny_base("llama")
    model: Any = load(base)
    with torch.no_grad():
        model(TOKENS, output_hidden_states=True)
        live.expand_live(model, plan(base, 2))
        assert len(model(TOKENS, output_hidden_states=True).hidden_states) == 7
        with live.bypass(model):
            assert len(model(TOKENS, output_hidden_states=True).hidden_states) == 5


def test_freeze_lets_exactly_the_new_blocks_train(expanded: Any):
    expanded.float()  # bf16 would round the smallest steps away
    trainable = live.freeze(expanded)
    by_name = dict(expanded.named_parameters())
    assert all(by_name[name] is parameter for name, parameter in trainable)
    names = [name for name, _ in trainable]
    assert {name.split(".")[2] for name in names} == {"2", "5"}
    assert {n for n, p in by_name.items() if p.requires_grad} == set(names)
    assert sum(p.numel() for _, p in trainable) == live.plan_of(expanded).cost.parameters_new
    before = state(expanded)
    train(expanded)
    moved = {name for name, tensor in state(expanded).items() if not torch.equal(tensor, before[name])}
    assert moved <= set(names)
    assert {n.split(".", 3)[3] for n in moved} == {n.split(".", 3)[3] for n in names}


def test_new_blocks_begin_without_their_donors_gradients(tiny_base: MakeBase):
    base = tiny_base("llama")
    model: Any = load(base)
    model(TOKENS, labels=TOKENS).loss.backward()
    live.expand_live(model, plan(base, 2))
    assert all(p.grad is None for block in live.new_blocks(model).values() for p in block.parameters())
    assert model.model.layers[1].mlp.up_proj.weight.grad is not None


# --- Models in memory that are not what a call expects: refused in words, and not changed ---


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
