"""What fuzzing found, each once more; and the fuzzers' targets themselves, for a moment, so that they stay true."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import fuzz_seeds
from fuzz_mutations import mutate
from fuzz_targets import TARGETS

from blockexpand.errors import BlockexpandError, CheckpointError, FamilyError, PlanError, RecordError
from blockexpand.expansion import plan
from blockexpand.families import family_for, known_families
from blockexpand.records import parse_json
from blockexpand.records.plan import read_plan

LLAMA = known_families()["llama"]


@pytest.mark.parametrize(
    ("target", "changes"), [("header", 300), ("file", 100), ("folder", 30), ("plan", 40), ("config", 40)]
)
def test_the_targets_take_their_seeds_and_changes_of_them(target: str, changes: int):
    run, seeds = TARGETS[target]
    pool = seeds()
    for seed in random.Random(0).sample(pool, min(len(pool), 8)):
        run(seed)
    chance = random.Random(1)
    for _ in range(changes):
        data = chance.choice(pool)
        run(mutate(data, chance.getrandbits(32)) or data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def changed(raw: bytes, data: st.DataObject) -> bytes:
    """JSON in which a value anywhere inside is any other."""
    value = whole = json.loads(raw)
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(value[key], dict | list) or not value[key] or data.draw(st.integers(0, 2)) == 0:
            value[key] = data.draw(JSON)
            return json.dumps(whole).encode()
        value = value[key]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_config_an_index_or_a_header_is_read_or_refused_in_a_line(data: st.DataObject):
    parts = data.draw(st.sampled_from(fuzz_seeds.folders())).split(fuzz_seeds.SPLIT)
    which = data.draw(st.sampled_from([i for i, part in enumerate(parts) if part]))
    parts[which] = changed(parts[which], data)
    TARGETS["folder"][0](fuzz_seeds.SPLIT.join(parts))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_plan_is_read_or_refused_in_a_line(data: st.DataObject):
    TARGETS["plan"][0](changed(data.draw(st.sampled_from(fuzz_seeds.plans())), data))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_config_of_any_family_is_read_or_refused_in_a_line(data: st.DataObject):
    TARGETS["config"][0](changed(data.draw(st.sampled_from(fuzz_seeds.configs())), data))


def made_with(**entries: Any) -> Any:
    config = {**fuzz_seeds.config_of(LLAMA), **entries}
    return plan(fuzz_seeds.checkpoint_of(family_for(config, "m"), config), 1)


def test_architectures_that_are_no_list_are_refused():
    for value in (5, 1.5, True, {"a": 1}):
        with pytest.raises(FamilyError, match="is not served; expected LlamaForCausalLM"):
            made_with(architectures=value)
    assert made_with(architectures="LlamaForCausalLM").num_blocks == 5


def test_digits_that_are_no_numbers_are_no_block_indices():
    assert made_with(names={"²": 1, "\u0661": 2}).num_blocks == 5
    assert made_with(names={"1" * 5000: 1}).num_blocks == 5
    with pytest.raises(FamilyError, match="'names' has one item for each of the 4 blocks"):
        made_with(names={"0": 1, "3": 2})


def saved(tmp_path: Path, **entries: Any) -> Path:
    """A plan file in which entries of the base's facts, or whole keys, are others."""
    plain = json.loads(fuzz_seeds.plans()[0])
    for key, value in entries.items():
        (plain["base"] if key in plain["base"] else plain)[key] = value
    (tmp_path / "plan.json").write_text(json.dumps(plain))
    return tmp_path / "plan.json"


@pytest.mark.parametrize("depth", [0, -1, 10_001, 10**9, 10**30])
def test_a_plan_for_a_base_of_endless_depth_is_refused_at_once(tmp_path: Path, depth: int):
    with pytest.raises(RecordError, match=rf"num_blocks: expected 1 to 10,000, got {depth}"):
        read_plan(saved(tmp_path, num_blocks=depth))


@pytest.mark.parametrize("digits", ["1e999", "-1e400", "1.5e308e"])
def test_numbers_beyond_all_bounds_are_refused(digits: str):
    with pytest.raises(RecordError, match="is larger than any number here|is not JSON"):
        parse_json(f'{{"rope_theta": {digits}}}', "config.json")


def test_text_that_cannot_be_written_again_is_refused():
    with pytest.raises(RecordError, match=r"config.json holds text that cannot be written as UTF-8 \('\\ud800'\)"):
        parse_json('{"name": "a\\ud800"}', "config.json")
    assert parse_json('{"name": "\\ud83d\\ude00"}', "config.json") == {"name": "\U0001f600"}


def test_a_shard_with_a_name_longer_than_names_can_be_is_refused(tmp_path: Path):
    config, index, *_ = fuzz_seeds.folders()[0].split(fuzz_seeds.SPLIT)
    (tmp_path / "config.json").write_bytes(config)
    plain = json.loads(index)
    first = next(iter(plain["weight_map"]))
    plain["weight_map"] = {first: "x" * 300 + ".safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="names the shard 'xxx.*expected the plain name"):
        plan(tmp_path, 1)


def test_an_error_is_one_line_of_bearable_length_whatever_is_in_it():
    error = PlanError("what\nhappened \ud800\x1b[31m " + "x" * 10_000 + " what to do")
    message = str(error)
    assert message.startswith("what\\nhappened \\ud800\\x1b[31m xxx")
    assert message.endswith("xxx what to do")
    assert "characters) ..." in message
    assert len(message) < 1300
    message.encode()
    assert str(BlockexpandError("a plain line, with ümlauts and 漢字")) == "a plain line, with ümlauts and 漢字"
