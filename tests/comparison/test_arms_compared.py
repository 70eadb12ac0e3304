"""Plans of every kind in a comparison, runs that several share, and statistics over seeds."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from blockexpand.comparison import compare
from blockexpand.comparison.summary import summarise
from blockexpand.comparison.trials import grown
from blockexpand.errors import ComparisonError, RecordError
from blockexpand.evaluation.measurement import model_digest
from blockexpand.records.comparison import ArmRecipe, PlanRecipe
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.expansion import read_expansion
from blockexpand.records.intervals import ratio_difference, seeded_ratio_difference
from blockexpand.records.run import BlocksArm, CustomArm
from comparison_ground import Place
from helpers import edit_json
from lm_helpers import make_corpus, make_lm


def blocks(name: str, **plan: object) -> ArmRecipe:
    return ArmRecipe(name=name, arm=BlocksArm(), plan=PlanRecipe(**plan), lrs=(1e-2,))  # type: ignore[arg-type]


def test_each_plan_grows_a_base_of_its_own(place: Place, tmp_path: Path) -> None:
    """Four new blocks on top, copies of the last four or of the last one, once had one folder."""
    arms = (
        blocks("suffix", blocks=2, placement="suffix"),
        blocks("top", after=(3, 3)),
        blocks("prefix", blocks=2, placement="prefix"),
        blocks("plain", blocks=2),
        blocks("copy", blocks=2, init="copy"),
        blocks("random", blocks=2, init="random"),
        ArmRecipe(
            name="up",
            arm=CustomArm(kind="custom", name="upscaled"),
            plan=PlanRecipe(repeat=(1, 3), init="copy"),
            lrs=(1e-2,),
        ),
    )
    found = grown(place.recipe(tmp_path, arms=arms), tmp_path)
    names = {name: folder.name.split("-", 1)[1] for name, folder in found.items()}
    assert names == {
        "suffix": "3of2-3",
        "top": "3-3",
        "prefix": "-1--1of1",
        "plain": "1-3",
        "copy": "1-3-copy",
        "random": "1-3-random",
        "up": "2of1-2-copy",
    }
    assert [b.donor for b in read_expansion(found["up"]).plan.new_blocks] == [1, 2]
    assert read_expansion(found["random"]).plan.init == "random"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, r"plan: expected exactly one of blocks, after and repeat, got \[\]"),
        ({"blocks": 2, "repeat": (1, 2)}, r"got \['blocks', 'repeat'\]"),
        ({"repeat": (3, 3)}, r"repeat: expected two numbers, the first block and the one after the last, got \(3, 3\)"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(wish: dict, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        PlanRecipe(**wish)


def test_comparisons_share_runs_by_their_digest(place: Place, tmp_path: Path) -> None:
    first = place.recipe(tmp_path / "one", runs=str(tmp_path / "shared"))
    compare(first)
    runs = tmp_path / "shared" / "runs"
    times = {p.name: (p / "blockexpand.json").stat().st_mtime_ns for p in runs.iterdir()}
    assert len(times) == 2
    renamed = dataclasses.replace(first.arms[0], name="another name")
    second = place.recipe(tmp_path / "two", runs=str(tmp_path / "shared"), arms=(renamed, first.arms[1]))
    found = compare(second)
    assert {p.name: (p / "blockexpand.json").stat().st_mtime_ns for p in runs.iterdir()} == times
    assert (tmp_path / "two" / found.trials[0].run / "model" / "config.json").is_file()
    more = compare(dataclasses.replace(second, seeds=(0, 1)))
    assert len(list(runs.iterdir())) == 4
    assert more.trials[0].held_out == found.trials[0].held_out
    assert more.trials[0].training_loss is not None
    assert {p.name for p in (tmp_path / "two" / "runs").iterdir()} == {
        f"{name}-seed{seed}" for name in ("another-name-lr0.01", "full-lr0.003") for seed in (0, 1)
    }


def test_runs_are_told_apart_by_contents_not_by_paths(place: Place, tmp_path: Path) -> None:
    """Two bases in folders of one name, and texts that changed under one name: nothing of one is the other's."""
    bases = [make_lm(tmp_path / name / "base", seed=seed) for seed, name in ((0, "x"), (1, "y"))]
    results = []
    for number, base in enumerate(bases):
        runs = str(tmp_path / "shared")
        results.append(compare(place.recipe(tmp_path / f"out-{number}", base=str(base), runs=runs)))
    assert len(list((tmp_path / "shared" / "expanded").iterdir())) == 2
    assert len(list((tmp_path / "shared" / "runs").iterdir())) == 4
    assert results[0].base["general"].loss != results[1].base["general"].loss
    for number, base in enumerate(bases):  # a base that changes in its place is another base
        before = read_evaluation(tmp_path / f"out-{number}" / "base-eval").record
        assert before.model_digest == model_digest(base)
    shutil.rmtree(bases[0])
    make_lm(bases[0], seed=2)
    recipe = results[0].recipe
    with pytest.raises(ComparisonError, match="out-0"):
        compare(recipe)
    shutil.rmtree(tmp_path / "out-0" / "runs")
    again = compare(recipe)
    assert again.base["general"].loss != results[0].base["general"].loss
    general = make_corpus(tmp_path / "general", bases[1], seed=5, documents=600)
    data = dataclasses.replace(results[1].recipe.data, general=str(general))
    with pytest.raises(ComparisonError, match="out-1"):
        compare(dataclasses.replace(results[1].recipe, data=data))


def test_results_pair_only_on_equal_documents(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path / "out")
    found = compare(recipe)
    edit_json(
        tmp_path / "out" / found.trials[0].run / "eval" / "blockexpand.json",
        lambda data: data["corpora"].update(general="sha256:other"),
    )
    with pytest.raises(ComparisonError, match="base-eval"):
        summarise(recipe, found.trials, tmp_path / "out")


def test_a_difference_that_one_seed_contradicts_is_noise() -> None:
    random = np.random.default_rng(0)
    tokens = np.full(60, 10.0)
    theirs = [random.normal(30, 3, 60) for _ in range(2)]
    agreeing = [theirs[0] - 2 - random.normal(0, 0.5, 60), theirs[1] - 1 - random.normal(0, 0.5, 60)]
    assert seeded_ratio_difference(agreeing, theirs, tokens).high < 0
    contradicting = [theirs[0] - 2 - random.normal(0, 0.5, 60), theirs[1] + 1 - random.normal(0, 0.5, 60)]
    found = seeded_ratio_difference(contradicting, theirs, tokens)
    assert found.is_noise
    assert found.difference == pytest.approx(np.mean([a - b for a, b in zip(contradicting, theirs, strict=True)]) / 10)
    documents_alone = ratio_difference(np.mean(contradicting, axis=0), np.mean(theirs, axis=0), tokens)
    assert not documents_alone.is_noise
    assert seeded_ratio_difference(agreeing[:1], theirs[:1], tokens) == ratio_difference(agreeing[0], theirs[0], tokens)
