"""Packs on a model in memory: every state of the switches is the same packs on disk, bit for bit."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockexpand import live
from blockexpand.errors import BlockexpandError, LiveError, PackError
from blockexpand.packs import attach, attach_on_disk, detach, load_attached, load_with_packs
from blockexpand.packs.in_memory import attach_to_model, attached, disable, enable, enabled, only
from blockexpand.records.expansion import read_expansion
from helpers import MakeBase, load, make_base
from packs_ground import PackGround, make_ground, make_pack, make_trained

sys.path.append(str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, Case, write

TOKENS = (torch.arange(24)[None] * 7) % 96
NAMES = ("code", "law", "math")
SUBSETS = [subset for count in range(4) for subset in itertools.combinations(NAMES, count)]


def answers(model: Any) -> list[Tensor]:
    """Logits of a whole sequence, all hidden states, logits through a cache, and a greedy continuation with one."""
    with torch.no_grad():
        whole = model(TOKENS, use_cache=False, output_hidden_states=True)
        start = model(TOKENS[:, :20], use_cache=True)
        rest = model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)
        words = model.generate(TOKENS[:, :12], max_new_tokens=12, do_sample=False, eos_token_id=None)
    return [whole.logits, *whole.hidden_states, start.logits, rest.logits, words]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def on_disk(ground: PackGround, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], list[Tensor]]:
    """What each set of packs answers when it was attached on disk and loaded by transformers alone."""
    folder, found = tmp_path_factory.mktemp("subsets"), {}
    for subset in SUBSETS:
        out = folder / "-".join(subset or ("base",))
        if subset:
            attach_on_disk(ground.base, [ground.packs[name] for name in subset], out)
        found[subset] = answers(load(out if subset else ground.base))
    assert all(not same(a, b) for a, b in itertools.combinations(found.values(), 2)), "the sets differ"
    return found


def test_every_state_of_the_switches_is_the_build_from_disk(ground: PackGround, on_disk: Any):
    model = attach(load(ground.base), [ground.packs["math"], ground.packs["code"]])
    attach(model, ground.packs["law"])
    assert attached(model) == enabled(model) == NAMES
    for subset in [*SUBSETS, *reversed(SUBSETS)]:
        disable(model, *NAMES)
        if subset:
            enable(model, *subset)
        assert enabled(model) == subset
        assert same(answers(model), on_disk[subset]), subset
    with only(model, "law"):
        assert same(answers(model), on_disk["law",])
        with live.bypass(model):
            assert same(answers(model), on_disk[()])
        assert same(answers(model), on_disk["law",])
    assert enabled(model) == ()
    enable(model)
    assert same(answers(model), on_disk[NAMES])


def test_taking_packs_off_leaves_the_others_or_the_base(ground: PackGround, on_disk: Any):
    model = load(ground.base)
    config, tensors = model.config.to_dict(), {n: t.clone() for n, t in model.state_dict().items()}
    for order in itertools.permutations(NAMES):
        attach(model, [ground.packs[name] for name in order])
        disable(model, "law")
        detach(model, names=[order[0]])
        left = tuple(sorted(set(order[1:]) - {"law"}))
        assert enabled(model) == left
        assert same(answers(model), on_disk[left])
        detach(model)
        assert attached(model) == ()
        assert model.config.to_dict() == config
        assert {n: t.tolist() for n, t in model.state_dict().items()} == {n: t.tolist() for n, t in tensors.items()}
    assert same(answers(model), on_disk[()])
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loading_with_packs_is_loading_what_was_attached_on_disk(
    dtype: torch.dtype, ground: PackGround, tmp_path: Path
):
    packs = [make_pack(ground.trained[n], tmp_path / n, n) for n in ("math", "code")]
    attach_on_disk(ground.base, packs, tmp_path / "out")
    expected = answers(load(tmp_path / "out", dtype))
    assert same(answers(load_with_packs(ground.base, packs, dtype)), expected)
    assert same(answers(attach_to_model(load(ground.base, dtype), packs, verify="all")), expected)
    model = load_attached(tmp_path / "out", dtype)
    assert attached(model) == ("code", "math")
    assert same(answers(model), expected)
    disable(model, "code", "math")
    assert same(answers(model), answers(load(ground.base, dtype)))


WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}


@pytest.mark.parametrize(
    ("family", "settings"), [("qwen2", WINDOWS), ("qwen3", {}), ("mistral", {"sliding_window": 8})]
)
def test_other_families_switch_too(family: str, settings: dict[str, Any], tmp_path: Path):
    """Windows by block: the config's list has to follow every switch."""
    made = make_ground(make_base(tmp_path / "base", family, **settings), tmp_path)
    model = attach(load(made.base), list(made.packs.values()))
    for subset in (("code",), ("law", "math"), ()):
        with only(model, *subset):
            expected = made.base
            if subset:
                expected = tmp_path / f"on {subset}"
                attach_on_disk(made.base, [made.packs[name] for name in subset], expected)
            assert same(answers(model), answers(load(expected)))
            ignored = {"_name_or_path", "dtype"}
            held, wanted = model.config.to_dict(), load(expected).config.to_dict()
            assert {k: v for k, v in held.items() if k not in ignored} == {
                k: v for k, v in wanted.items() if k not in ignored
            }


FAMILIES = ("mixtral", "gemma2", "gpt_neox", "gpt2", "qwen2_moe")
"""Experts that memory holds as one, gains stored as gain minus one, norms behind branches, fused and transposed
projections, blocks of several kinds."""


@pytest.mark.parametrize("row", [next(row for row in ZOO if row.family == name) for name in FAMILIES], ids=FAMILIES)
def test_kinds_of_families(row: Case, tmp_path: Path):
    made = write(row, tmp_path / "base")
    pack = make_pack(make_trained(made, tmp_path / "m", after=(1,)), tmp_path / "m.pack", "m")
    attach_on_disk(made, [pack], tmp_path / "out")
    assert same(answers(attach(load(made), [pack])), answers(load(tmp_path / "out")))


def test_a_cache_of_other_blocks_is_refused(ground: PackGround):
    model = attach(load(ground.base), [ground.packs["code"], ground.packs["law"]])
    with torch.no_grad():
        start = model(TOKENS[:, :20], use_cache=True)
        disable(model, "law")
        with pytest.raises(LiveError, match=r"filled with the new blocks none off, and now after3.1 are; .* new cache"):
            model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)
        enable(model, "law")
        model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)


def test_watching_over_caches_asks_for_nothing_deprecated(ground: PackGround, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr("transformers.utils.generic.logger.warning_once", said.append)
    attach(load(ground.base), [ground.packs["code"]]).generate(TOKENS[:, :12], max_new_tokens=3, do_sample=False)
    assert said == []


def test_switching_in_the_middle_of_generating_is_refused_and_beginning_again_is_not(ground: PackGround):
    """A streamer that switches after three tokens: the cache is of another model from there on."""
    model = attach(load(ground.base), [ground.packs["code"]])

    class Switching:
        seen = 0

        def put(self, value: Tensor) -> None:
            self.seen += 1
            if self.seen == 4:
                disable(model, "code")

        def end(self) -> None:
            """Nothing is held back."""

    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with pytest.raises(LiveError, match="begin a new cache"):
        model.generate(TOKENS[:, :12], streamer=Switching(), **settings)
    assert torch.equal(
        model.generate(TOKENS[:, :12], **settings), load(ground.base).generate(TOKENS[:, :12], **settings)
    )


def test_train_mode_reaches_blocks_that_were_off(ground: PackGround):
    model = attach(load(ground.base), [ground.packs["code"], ground.packs["law"]])
    disable(model, "law")
    model.train()
    enable(model, "law")
    assert all(block.training for block in live.new_blocks(model).values())
    model.eval()
    assert not any(block.training for block in live.new_blocks(model).values())


def refused(model: Any, pack: Path, **settings: Any) -> str:
    before = [id(block) for block in model.model.layers]
    with pytest.raises(BlockexpandError) as caught:
        attach_to_model(model, [pack], **settings)
    assert [id(block) for block in model.model.layers] == before
    return str(caught.value)


def test_what_does_not_belong_to_a_model(ground: PackGround, tiny_base: MakeBase, tmp_path: Path):
    code = ground.packs["code"]
    assert "is for family llama, and this Qwen3ForCausalLM has qwen3" in refused(load(tiny_base("qwen3")), code)
    assert "of so many blocks: 4, and this LlamaForCausalLM has 5" in refused(load(tiny_base("llama", blocks=5)), code)
    wide = load(tiny_base("llama", intermediate_size=64))
    assert "with mlp.down_proj.weight of shape [32, 48], and the model has [32, 64]" in refused(wide, code)
    full = make_pack(
        make_trained(tiny_base("llama", dtype=torch.float32), tmp_path / "f32", after=(0,)), tmp_path / "p", "f32"
    ).folder
    assert "as torch.bfloat16, and the pack 'f32' is for a base of precision F32" in refused(load(ground.base), full)
    assert "as torch.float16, and the pack 'code'" in refused(load(ground.base, torch.float16), code)
    expanded = load(ground.trained["law"])
    live.adopt(expanded, read_expansion(ground.trained["law"]).plan)
    assert "has new blocks that belong to no pack" in refused(expanded, code)
    again = attach(load(ground.base), [code])
    assert "the model has a pack 'code' already" in refused(again, code)


def test_changed_numbers_are_found_where_they_are_looked_for(ground: PackGround):
    code = ground.packs["code"]
    places = {"model.layers.1.mlp.up_proj": "donors", "model.layers.0.mlp.up_proj": "all", "model.embed_tokens": "all"}
    for name, verify in places.items():
        model = load(ground.base)
        with torch.no_grad():
            model.get_submodule(name).weight[2, 3] += 1
        line = refused(model, code, verify=verify)
        assert f"the numbers of '{name}.weight' are blake3:" in line
    with torch.no_grad():
        model = load(ground.base)
        model.model.layers[0].input_layernorm.weight[3] += 1
    assert "'model.layers.0.input_layernorm.weight'" in refused(model, code)
    attach_to_model(model, [code], verify="none")


def test_a_pack_with_other_bytes(ground: PackGround, tmp_path: Path):
    pack = shutil.copytree(ground.packs["code"], tmp_path / "pack")
    data = bytearray((pack / "blocks.safetensors").read_bytes())
    data[-5] ^= 1
    (pack / "blocks.safetensors").write_bytes(data)
    assert "are not those that pack.json names" in refused(load(ground.base), pack)


def test_names_that_are_not_there(ground: PackGround):
    model = load(ground.base)
    with pytest.raises(PackError, match="this LlamaForCausalLM has no packs"):
        disable(model, "code")
    attach(model, ground.packs["code"])
    for call in (enable, disable):
        with pytest.raises(PackError, match="has no pack 'cod'; .*did you mean 'code'"):
            call(model, "cod")
    with pytest.raises(PackError, match="has no pack 'x'"):
        detach(model, names=["x"])
    with pytest.raises(LiveError, match="no new block 'after9.0' in this LlamaForCausalLM"):
        live.switch(model, ["after9.0"])
    with pytest.raises(PackError, match="no output for"):
        attach(ground.base, ground.packs["code"])
    with pytest.raises(PackError, match="no output for the base inside"):
        detach(ground.trained["code"])
    with pytest.raises(PackError, match="was expanded, and holds no packs to switch"):
        load_attached(ground.trained["code"])
