"""Plans: what they say, how they are kept, and that known models' plans never move."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import BlockexpandError, RecordError
from blockexpand.expansion import plan
from blockexpand.records import dump_json, from_plain, to_plain, with_format
from blockexpand.records.plan import Plan, read_plan
from helpers import KNOWN_SHAPES, MakeBase, shape_only

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
sys.path.insert(0, str(GOLDEN))
import plan_requests  # noqa: E402


@pytest.mark.parametrize("name", plan_requests.REQUESTS)
def test_the_plans_of_known_models_do_not_move(name: str):
    assert dump_json(with_format(plan_requests.make(name))) == (GOLDEN / f"{name}.json").read_text()
    assert read_plan(GOLDEN / f"{name}.json") == plan_requests.make(name)


def test_llama_pro():
    """PAPER.md 1: 202,383,360 a layer, 8,357,482,496 in all, new layers 4, 9, ..., 39."""
    made = plan(shape_only("llama2-7b", KNOWN_SHAPES["llama2-7b"]), 8)
    assert made.cost.parameters_new == 8 * 202_383_360
    assert made.cost.parameters_after == 8_357_482_496
    assert made.new_positions == (4, 9, 14, 19, 24, 29, 34, 39)
    assert made.zeroed == ("mlp.down_proj.weight", "self_attn.o_proj.weight")
    assert made.config_changes == {"num_hidden_layers": 40}


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
