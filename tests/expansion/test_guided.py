"""Choosing places by scores: the best set there is, also where the config can state only some."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.errors import PlanError, RecordError
from blockexpand.expansion import BlockScore, Guidance, Measure, Plan, draw, plan, read_plan
from blockexpand.expansion.drawing import bar_lengths
from blockexpand.expansion.formulas import Kinds, solve, stateable
from blockexpand.expansion.guided import choose
from blockexpand.families import Between, Every, First
from blockexpand.records import from_plain, to_plain
from helpers import KNOWN_SHAPES, MakeBase, shape_only

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
import zoo

HARMS = (5.6, 0.2, 0.12, 0.15)


def guidance(harms: tuple[float, ...] = HARMS, measure: Measure = "kl", **changes: Any) -> Guidance:
    """Scores whose measures agree, unless changed."""
    scores = tuple(BlockScore(kl=harm, loss_rise=harm, cosine=1 - harm / 8) for harm in harms)
    made = Guidance(
        measure=measure,
        scores=scores,
        base_loss=3.5,
        num_tokens=1000,
        row_tokens=128,
        tokens_digest="sha256:00",
        texts=("general.jsonl",),
        dtype="bfloat16",
        device="cpu",
    )
    return dataclasses.replace(made, **changes)


# --- choosing ----------------------------------------------------------------------------------------

FEW = st.lists(st.integers(0, 3).map(float) | st.floats(-5, 5), min_size=1, max_size=9)


@given(harms=FEW, data=st.data())
def test_without_constraints_the_least_are_chosen(harms: list[float], data: Any):
    blocks = data.draw(st.integers(1, len(harms)))
    chosen = choose(harms, blocks)
    assert chosen is not None
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == blocks
    assert sum(Fraction(harms[i]) for i in chosen) == sum(sorted(map(Fraction, harms))[:blocks])
    # Nothing that was left out is better than anything that was taken, and of equals the lowest are taken.
    for taken, left in itertools.product(chosen, set(range(len(harms))) - set(chosen)):
        assert (harms[taken], taken) < (harms[left], left)


def stack_of(chosen: tuple[int, ...], depth: int) -> list[int]:
    return [old for old in range(depth) for _ in range(1 + (old in chosen))]


RULES: dict[str, Any] = {
    "first": First(kind="first", key="dense", default=2),
    "every": Every(kind="every", period_key="period", period_default=2, offset_key="offset", offset_default=1),
    "between": Between(kind="between", start_key="start", start_default=1, end_key="end", interval_key="interval"),
}


def kinds_of(rules: tuple[str, ...], config: dict[str, int], depth: int, length: int) -> list[Kinds]:
    class Family:
        per_layer = tuple(RULES[name] for name in rules)

        @staticmethod
        def text(config: dict[str, int]) -> dict[str, int]:
            return config

        @staticmethod
        def depth(config: dict[str, int]) -> int:
            del config
            return depth

    fake: Any = Family
    return stateable(fake, config, length)


@settings(max_examples=150, deadline=None)
@given(
    harms=FEW,
    rules=st.sets(st.sampled_from(sorted(RULES)), min_size=1, max_size=2),
    numbers=st.tuples(*[st.integers(1, 4)] * 4, st.integers(-1, 6)),
    data=st.data(),
)
def test_under_constraints_the_best_set_that_can_be_stated_is_chosen(
    harms: list[float], rules: set[str], numbers: tuple[int, ...], data: Any
):
    """Against all subsets, each asked of the very function that rewrites the config."""
    depth, blocks = len(harms), data.draw(st.integers(1, len(harms)))
    names = ("dense", "period", "interval", "start", "end")
    config = {**dict(zip(names, numbers, strict=True)), "offset": min(numbers[3], numbers[1]) - 1}
    allowed = [
        subset
        for subset in itertools.combinations(range(depth), blocks)
        if all(solve(RULES[name], config, depth, stack_of(subset, depth)) is not None for name in rules)
    ]
    best = min(((sum(Fraction(harms[i]) for i in subset), subset) for subset in allowed), default=(0, None))[1]
    assert choose(harms, blocks, kinds_of(tuple(sorted(rules)), config, depth, depth + blocks)) == best


# --- in a plan ---------------------------------------------------------------------------------------


def test_new_blocks_stand_on_the_least_missed(tiny_base: MakeBase):
    made = plan(tiny_base(), 2, placement=guidance())
    assert made.placement.kind == "guided"
    assert [(b.after, b.donor, b.id) for b in made.new_blocks] == [(2, 2, "after2.0"), (3, 3, "after3.0")]
    assert made.guidance == guidance()
    assert made.notes == ()


@pytest.mark.parametrize(("measure", "places"), [("kl", [0, 2]), ("loss", [1, 3]), ("cosine", [2, 3])])
def test_each_measure_chooses_by_its_own_figures(tiny_base: MakeBase, measure: Measure, places: list[int]):
    rows = [(0.1, 0.9, 0.2), (0.9, -0.1, 0.1), (0.2, 0.8, 0.9), (0.8, 0.2, 0.99)]
    scores = tuple(BlockScore(kl=kl, loss_rise=rise, cosine=cosine) for kl, rise, cosine in rows)
    made = plan(tiny_base(), 2, placement=guidance(measure=measure, scores=scores))
    assert [b.after for b in made.new_blocks] == places


@pytest.fixture
def jamba(tmp_path: Path) -> Path:
    """Four blocks of which the third attends, as two numbers state: a copy beside it could not be stated."""
    row = next(row for row in zoo.ZOO if row.family == "jamba")
    numbers = {"num_hidden_layers": 4, "expert_layer_period": 8, "expert_layer_offset": 7}
    return zoo.write(dataclasses.replace(row, settings=row.settings | numbers), tmp_path / "base")


def test_where_the_config_can_state_some_sets_only_the_best_of_these_is_taken_and_said(jamba: Path):
    made = plan(jamba, 2, placement=guidance((0.4, 0.3, 0.1, 0.2)))
    assert [b.after for b in made.new_blocks] == [1, 3]
    assert made.notes[0] == (
        "of the sets of 2 places that config.json can state, after 1, 3 has the lowest sum of scores; the 2 least "
        "missed blocks overall are 2, 3"
    )
    free = plan(jamba, 2, placement=guidance((0.1, 0.3, 0.4, 0.2)))
    assert [b.after for b in free.new_blocks] == [0, 3]
    assert not any("least missed" in note for note in free.notes)


def test_where_no_set_can_be_stated_the_error_names_placements_that_can(jamba: Path):
    with pytest.raises(PlanError, match=r"by numbers \(attn_layer_period 4.*use blocks=\d placement="):
        plan(jamba, 4, placement=guidance())


def test_scores_are_kept_in_the_plan_and_come_back(tiny_base: MakeBase, tmp_path: Path):
    made = plan(tiny_base(), 2, placement=guidance())
    made.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["format_version"] == 1
    assert data["placement"] == {"kind": "guided", "per_group": 1, "group_sizes": []}
    assert data["guidance"]["scores"][1] == {"kl": 0.2, "loss_rise": 0.2, "cosine": 0.975}


def test_other_plans_are_written_as_before(tiny_base: MakeBase):
    assert "guidance" not in to_plain(plan(tiny_base(), 2))


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"blocks": 5}, ["cannot place 5 new blocks by importance", "the model has 4 blocks", "blocks=4 or fewer"]),
    ({"blocks": None}, ["'guided' without a number of new blocks", "blocks=1"]),
    ({"blocks": 0}, ["blocks is 0"]),
    ({"blocks": None, "after": (1, 2)}, ["'guided' and a list of positions (1, 2)"]),
    ({"blocks": 2, "per_group": 2}, ["per_group 2 with placement 'guided'"]),
    ({"blocks": 2, "placement": guidance(HARMS[:3])}, ["scores of 3 blocks for a model of 4"]),
    ({"blocks": 2, "placement": "guided"}, ["placement 'guided' without scores", "--text"]),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[str(words[0]) for _, words in REFUSED])
def test_what_cannot_be_guided_is_refused(tiny_base: MakeBase, change: dict[str, Any], words: list[str]):
    request: dict[str, Any] = {"placement": guidance()} | change
    with pytest.raises(PlanError) as raised:
        plan(tiny_base(), **request)
    for word in words:
        assert word in str(raised.value)


MISTAKEN: list[tuple[Any, str]] = [
    (
        lambda d: d["placement"].update(kind="explicit"),
        r"guidance: expected scores for a guided placement .* 'explicit'",
    ),
    (lambda d: d.pop("guidance"), r"guidance: expected scores for a guided placement .* got 'guided'"),
    (lambda d: d["guidance"]["scores"].pop(), r"guidance\.scores: expected 4, got 3"),
    (lambda d: d["guidance"]["scores"][0].update(kl="high"), r"scores\[0\]\.kl: expected a number, got 'high'"),
    (lambda d: d["guidance"].update(num_tokens=-1), r"num_tokens: expected 0 or more, got -1"),
    (lambda d: d["guidance"].update(measure="los"), r"did you mean 'loss'"),
    (lambda d: d["new_blocks"][1].update(after=2, donor=2, id="after2.1", position=4), r"one new block in each guided"),
]


@pytest.mark.parametrize(("change", "words"), MISTAKEN)
def test_a_guided_plan_that_contradicts_itself_is_refused(tiny_base: MakeBase, change: Any, words: str):
    data = to_plain(plan(tiny_base(), 2, placement=guidance()))
    change(data)
    with pytest.raises(RecordError, match=words):
        from_plain(Plan, data, where="plan.json")


def test_a_score_must_be_finite():
    with pytest.raises(RecordError, match="kl: expected a finite number, got nan"):
        BlockScore(kl=float("nan"), loss_rise=0.0, cosine=0.0)
    with pytest.raises(RecordError, match=r"scores: expected one for each block, got \[\]"):
        guidance(())


# --- drawn -------------------------------------------------------------------------------------------


def test_every_block_is_drawn_with_its_bar(tiny_base: MakeBase):
    text = draw(plan(tiny_base(), 2, placement=guidance()), ascii_only=True)
    assert "guided by KL to the whole model when the block is skipped (1,000 tokens)" in text
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2 and " new " not in line]
    assert [(inside.strip(), beside.split()) for _, inside, beside in rows] == [
        ("old 3", ["##", "0.15"]),
        ("old 2", ["#", "0.12"]),
        ("old 1", ["##", "0.2"]),
        ("old 0", ["#" * 12, "5.6"]),
    ]


def test_bars_are_logarithmic_and_nothing_lost_is_no_bar():
    assert bar_lengths([1.0, 2.0, 8.0, 2.0**11]) == [1, 2, 4, 12]
    assert bar_lengths([0.5, 0.5]) == [1, 1]
    assert bar_lengths([-0.1, 0.0, 2.0]) == [0, 0, 1]
    assert bar_lengths([-1.0]) == [0]


def test_the_words_of_a_deep_model_name_every_block():
    shape = shape_only("llama2-7b", KNOWN_SHAPES["llama2-7b"])
    made = plan(shape, 8, placement=guidance(tuple(1 + abs(i - 20) / 7 for i in range(32))))
    assert [b.after for b in made.new_blocks] == list(range(16, 24))  # 16 and 24 are equal: the lower one
    assert sum("│" in line for line in draw(made).splitlines()) == 40
