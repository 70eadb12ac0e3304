"""Routing: the choice is the likeliest set, shared blocks run once and change no bit, the switches stay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from blockexpand.errors import PackError, RecordError
from blockexpand.live.forward import RowBatch, cross_entropies
from blockexpand.packs import attach, load_with_packs
from blockexpand.packs.in_memory import disable, enabled, only
from blockexpand.packs.route import Rule, candidates_of, choose, cost_of, losses_by_set, name_of, route, routed
from helpers import load
from packs_ground import PackGround, make_pack, make_trained

sys.path.append(str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, Case, write

LIKED = 6
"""The seed of a prompt that a pack happens to find likelier than the base does."""
TOKENS = [int(t) for t in (torch.arange(40) * 7) % 96]


@pytest.fixture
def model(ground: PackGround) -> Any:
    return load_with_packs(ground.base, [ground.packs["code"], ground.packs["law"]])


def test_the_choice_is_the_likeliest(model: Any):
    disable(model, "law")
    found = route(model, TOKENS, Rule(evidence=0.0, together=True))
    assert enabled(model) == ("code",), "the switches stay"
    assert set(found.nats) == {(), ("code",), ("law",), ("code", "law")}
    assert set(route(model, TOKENS).nats) == {(), ("code",), ("law",)}
    for names, nats in found.nats.items():
        with only(model, *names), torch.no_grad():
            loss = model(torch.tensor([TOKENS]), labels=torch.tensor([TOKENS]), use_cache=False).loss
        assert abs(float(loss) - nats) < 1e-4
    assert found.nats[found.names] == min(found.nats.values())
    with routed(model, TOKENS, Rule(evidence=0.0, together=True)) as inside:
        assert enabled(model) == inside.names == found.names
    assert enabled(model) == ("code",)


def test_a_set_has_to_beat_the_base_by_the_margin():
    nats = {(): 2.0, ("a",): 1.97, ("b",): 1.95, ("a", "b"): 1.95}
    assert choose(nats, 0.0) == ("b",), "fewest packs among equals"
    assert choose(nats, 0.04) == ("b",)
    assert choose(nats, 0.06) == ()
    assert choose({(): 2.0, ("a",): 1.75}, 0.25) == (), "as much as the margin is not beaten"
    assert choose({("a",): 3.0, ("b",): 2.0}, 0.5) == ("b",), "the base is no candidate"


def test_evidence_is_counted_over_the_whole_prompt(model: Any):
    """The same difference a token convinces of a long prompt and not of a short one; more than the rule reads counts
    for nothing."""
    tokens = torch.randint(96, (40,), generator=torch.Generator().manual_seed(LIKED)).tolist()
    nats = route(model, tokens, Rule(evidence=0.0)).nats
    lead = nats[()] - min(nats[("code",)], nats[("law",)])
    assert lead > 0, "one of the packs is likelier here"
    enough = lead * (len(tokens) - 1)
    assert route(model, tokens, Rule(evidence=0.99 * enough)).names != ()
    assert route(model, tokens, Rule(evidence=1.01 * enough)).names == ()
    with routed(model, tokens, Rule(evidence=0.0)) as inside:
        assert enabled(model) == inside.names != ()
    cut = Rule(prompt_tokens=12, evidence=0.0)
    assert route(model, tokens, cut).nats == route(model, tokens[-12:], cut).nats


def test_candidates_may_be_some_of_the_packs(model: Any):
    assert candidates_of(model) == ((), ("code",), ("law",))
    assert candidates_of(model, together=True) == ((), ("code",), ("law",), ("code", "law"))
    assert candidates_of(model, together=True, among=["law"]) == ((), ("law",))
    assert [name_of(names) for names in candidates_of(model, together=True)] == ["base", "code", "law", "code+law"]


@pytest.mark.parametrize("length", [0, 1])
def test_a_prompt_too_short_to_be_predicted_is_the_bases(model: Any, length: int):
    found = route(model, TOKENS[:length], Rule(evidence=0.0))
    assert (found.names, found.nats, found.cost) == ((), {}, 0.0)


def batch_of(tokens: torch.Tensor, positions: torch.Tensor) -> RowBatch:
    return RowBatch.of(tokens.numpy(), positions.numpy(), positions.numpy() > 0, tokens.device)


def test_blocks_below_run_once(model: Any):
    sets = candidates_of(model)
    route(model, TOKENS)  # which finds out how the model treats documents in one row
    first = model.model.layers[0]
    seen: list[int] = []
    own = first.self_attn.register_forward_hook(lambda *_: seen.append(1))
    found = route(model, TOKENS)
    own.remove()
    assert len(seen) == 1, "its attention ran for the first candidate alone"
    # Old blocks 0 and 1 once; then 2 old ones each, and 0, 2 and 1 new ones.
    assert found.cost == cost_of(model, sets) == (2 + 2 + 4 + 3) / 4
    assert "forward" not in vars(first)


def test_one_document_shares_blocks_whatever_the_family_does_with_several(tmp_path: Path):
    base = write(next(row for row in ZOO if row.family == "opt"), tmp_path / "base")
    model = attach(load(base), make_pack(make_trained(base, tmp_path / "a", after=(1,)), tmp_path / "a.p", "a"))
    route(model, TOKENS)
    seen: list[int] = []
    own = model.model.decoder.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    route(model, TOKENS)
    own.remove()
    assert len(seen) == 1


def test_what_was_on_the_blocks_below_stays(model: Any):
    """Others put forwards and hooks of their own on blocks; routing leaves these, and none of its own."""
    route(model, TOKENS)  # which finds out how the model treats documents in one row
    block, calls = model.model.layers[0], []
    plain = block.forward

    def forward(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return plain(*args, **more)

    block.forward = forward
    hooks = [len(one._forward_hooks) for one in model.model.layers]
    route(model, TOKENS)
    assert vars(block)["forward"] is forward
    assert len(calls) == 1
    assert [len(one._forward_hooks) for one in model.model.layers] == hooks


FAMILIES = ("llama", "gemma2", "gpt_neox", "falcon", "gpt2", "mixtral", "opt")


@pytest.mark.parametrize("row", [next(row for row in ZOO if row.family == name) for name in FAMILIES], ids=FAMILIES)
def test_sharing_changes_no_bit(row: Case, tmp_path: Path):
    """Also where documents share rows, and in families that have to run each in a row of its own."""
    base = write(row, tmp_path / "base")
    packs = [
        make_pack(make_trained(base, tmp_path / n, after=(a,)), tmp_path / f"{n}.p", n) for n, a in (("a", 1), ("b", 3))
    ]
    model = attach(load(base), packs)
    positions = torch.cat([torch.arange(17), torch.arange(23)]).repeat(2, 1)
    batch = batch_of((torch.arange(80).view(2, 40) * 5) % 90, positions)
    found = losses_by_set(model, batch, candidates_of(model, together=True))
    for names, losses in found.items():
        with only(model, *names):
            assert torch.equal(cross_entropies(model, batch), losses)


def test_a_pack_below_the_first_block_shares_nothing_and_works(ground: PackGround):
    model = load_with_packs(ground.base, [ground.packs["math"]])
    assert set(route(model, TOKENS).nats) == {(), ("math",)}
    assert cost_of(model, candidates_of(model)) == (4 + 8) / 4


def test_an_error_leaves_the_model_whole(model: Any):
    bad = batch_of(torch.full((1, 8), 10**6), torch.arange(8)[None])
    with pytest.raises(IndexError):
        losses_by_set(model, bad, candidates_of(model))
    assert enabled(model) == ("code", "law")
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_what_cannot_be_routed(model: Any, ground: PackGround):
    with pytest.raises(PackError, match="has no packs to choose among"):
        route(load(ground.base), TOKENS)
    with pytest.raises(PackError, match="has no pack 'x'"):
        route(model, TOKENS, candidates=[("x",)])
    with pytest.raises(RecordError, match="prompt_tokens: expected 2 or more, got 1"):
        Rule(prompt_tokens=1)
    with pytest.raises(RecordError, match="evidence: expected 0 or more, got -0.1"):
        Rule(evidence=-0.1)
