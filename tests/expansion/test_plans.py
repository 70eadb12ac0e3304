"""Plans: what they say, how they are kept, and that known models' plans never move."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import BlockexpandError, RecordError
from blockexpand.expansion import plan
from blockexpand.records import dump_json, from_plain, to_plain, with_format
from blockexpand.records.plan import Plan, read_plan
from helpers import MakeBase

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
sys.path.insert(0, str(GOLDEN))
import plan_requests  # noqa: E402


@pytest.mark.parametrize("name", plan_requests.REQUESTS)
def test_the_plans_of_known_models_do_not_move(name: str):
    assert dump_json(with_format(plan_requests.make(name))) == (GOLDEN / f"{name}.json").read_text()
    assert read_plan(GOLDEN / f"{name}.json") == plan_requests.make(name)


def test_old_and_new_indices_map_to_each_other(tiny_base: MakeBase):
    made = plan(tiny_base(), after=(-1, 1, 1))
    assert made.num_blocks == 7
    assert made.new_positions == (0, 3, 4)
    assert made.old_to_new == (1, 2, 5, 6)
    assert made.new_to_old == (None, 0, 1, None, None, 2, 3)
    assert made.sources == (0, 0, 1, 1, 1, 2, 3)
    assert [e.position for e in made.stack] == list(range(7))
    assert [e.new.id if e.new else e.old for e in made.stack] == [
        "before0.0",
        0,
        1,
        "after1.0",
        "after1.1",
        2,
        3,
    ]


def test_new_blocks_below_the_first_come_with_a_warning(tiny_base: MakeBase):
    assert plan(tiny_base(), 2).notes == plan(tiny_base(), 2, placement="suffix").notes == ()
    for made in (plan(tiny_base(), 2, placement="prefix"), plan(tiny_base(), after=(-1, -1, 3))):
        assert len(made.notes) == 1
        assert made.notes[0].startswith("before0.0, before0.1 below the first block")


# --- plans that were changed by hand -----------------------------------------------------------------


def mistaken(change: Any) -> None:
    data = to_plain(plan_requests.make("llama2-7b-llama-pro"))
    change(data)
    from_plain(Plan, data, where="plan.json")


WRONG: list[tuple[Any, str]] = [
    (lambda d: d["new_blocks"][0].update(position=5), r"NewBlock\(id='after3\.0', position=4"),
    (lambda d: d["new_blocks"][0].update(id="first"), r"id='after3\.0'"),
    (lambda d: d["new_blocks"][0].update(donor=32), r"after3\.0\.donor: expected 0 to 31, got 32"),
    (lambda d: d["new_blocks"][0].update(after=-2), r"after3\.0\.after: expected -1 to 31, got -2"),
    (lambda d: d["new_blocks"].reverse(), r"which the order of the list gives"),
    (lambda d: d["new_blocks"].clear(), r"at least one new block, got \[\]"),
    (lambda d: [t.update(starts="donor") for t in d["kinds"][0]["tensors"]], r"a tensor that starts at zero"),
    (lambda d: d["kinds"][0]["tensors"][0].update(starts="noise"), r"'noise'"),
    (lambda d: d["config_before"].clear(), r"config_before: expected the same keys, got \{\}"),
    (lambda d: d.update(blocks=8), r"unknown key 'blocks'"),
    (lambda d: d["placement"].update(kind="interleave"), r"did you mean 'interleaved'"),
    (lambda d: d["base"].pop("num_blocks"), r"'num_blocks' is missing"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_a_plan_that_contradicts_itself_is_refused(change: Any, words: str):
    with pytest.raises(RecordError, match=words):
        mistaken(change)


def test_a_plan_of_another_version_or_format_is_refused(tmp_path: Path):
    data = with_format(plan_requests.make("qwen3-8b-suffix"))
    for change, words in (
        ({"format_version": 2}, "format version 2"),
        ({"format": "x"}, r"expected format .*, got 'x'"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps(data | change))
        with pytest.raises(RecordError, match=words):
            read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(BlockexpandError, match=r"is not a blockexpand\.plan file"):
        read_plan(tmp_path / "plan.json")


# --- costs, by hand ---

# The tiny Llama by hand: hidden 32, 4 heads of 8, 2 key-value heads, 48 inside the MLP, 96 words.
BLOCK = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48 + 2 * 32
HEAD = 96 * 32


def test_parameters_and_bytes_by_hand(tiny_base: MakeBase):
    cost = plan(tiny_base("llama"), 2).cost
    assert cost.parameters_before == 2 * HEAD + 32 + 4 * BLOCK
    assert cost.parameters_new == 2 * BLOCK
    assert cost.parameters_after == cost.parameters_before + 2 * BLOCK
    assert cost.weights_bytes_before == 2 * cost.parameters_before == open_checkpoint(tiny_base("llama")).num_bytes
    assert cost.weights_bytes_after == 2 * cost.parameters_after
    assert cost.training_memory_bytes == 2 * cost.parameters_before + 16 * 2 * BLOCK


def test_a_tied_head_costs_no_parameters_and_biases_cost_theirs(tiny_base: MakeBase):
    untied = plan(tiny_base("llama"), 1).cost
    assert plan(tiny_base("llama", tie_word_embeddings=True), 1).cost.parameters_before == (
        untied.parameters_before - HEAD
    )
    with_bias = plan(tiny_base("llama", attention_bias=True), 1).cost
    assert with_bias.parameters_new == untied.parameters_new + 32 + 16 + 16 + 32
