"""Comparisons: equal arms, cached runs, chosen rates, and figures that can be checked by hand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexpand.comparison import compare
from blockexpand.comparison.summary import pareto
from blockexpand.comparison.trials import trial_plans
from blockexpand.errors import ComparisonError, RecordError, TrainingError
from blockexpand.records import dump_json
from blockexpand.records.comparison import ArmRecipe, PlanRecipe, read_comparison
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.run import (
    NO_RETENTION,
    BlocksArm,
    DataSettings,
    FullArm,
    LoraArm,
    Measurement,
    OldBlocksArm,
    read_metrics,
)
from blockexpand.training.checkpoints import newest_checkpoint, read_progress
from comparison_ground import Place

ARMS = (
    ArmRecipe(name="block expansion", arm=BlocksArm(), plan=PlanRecipe(blocks=2), lrs=(3e-3, 1e-2)),
    ArmRecipe(name="full", arm=FullArm(kind="full"), lrs=(1e-3, 3e-3)),
    ArmRecipe(name="LoRA", arm=LoraArm(kind="lora", rank=2), lrs=(3e-3, 1e-2)),
    ArmRecipe(name="free", arm=FullArm(kind="full"), lrs=(3e-3,), unrestricted=True),
)


def test_a_whole_comparison(place: Place, tmp_path: Path) -> None:
    result = compare(place.recipe(tmp_path / "out", arms=ARMS), workers=2)
    assert read_comparison(tmp_path / "out") == result
    assert [arm.name for arm in result.arms] == ["block expansion", "full", "LoRA", "free"]
    assert len(result.trials) == 7
    base = read_evaluation(tmp_path / "out" / "base-eval")
    for arm in result.arms:
        mine = [t for t in result.trials if t.arm == arm.name]
        assert arm.lr == min(mine, key=lambda t: t.steering.domain).lr
        (trial,) = arm.trials
        held_out = read_evaluation(tmp_path / "out" / trial.run / "eval").record.held_out
        gain = base.record.held_out["domain"].loss - held_out["domain"].loss
        rise = held_out["general"].loss / base.record.held_out["general"].loss - 1
        assert arm.gain.mean == pytest.approx(gain, abs=1e-9)
        assert arm.forgetting.mean == pytest.approx(rise, abs=1e-9)
        assert arm.gain.low <= arm.gain.mean <= arm.gain.high
        assert trial.curve[0].step == 0
        assert trial.peak_memory_bytes > 0
    free = result.arms[-1]
    assert free.gain_over_reference == pytest.approx(1.0)
    assert result.arms[0].gain_over_reference == pytest.approx(result.arms[0].gain.mean / free.gain.mean)
    assert [c.theirs for c in result.contrasts] == ["full", "LoRA", "free"]
    full = result.arms[1]
    assert result.contrasts[0].domain.difference == pytest.approx(result.arms[0].domain_loss - full.domain_loss)


def test_what_is_finished_is_not_run_again(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path / "out")
    small = dataclasses.replace(recipe, arms=recipe.arms[:1])
    first = compare(small)
    runs = tmp_path / "out" / "runs"
    times = {p.name: (p / "blockexpand.json").stat().st_mtime_ns for p in runs.iterdir()}
    assert len(times) == 1
    more = compare(recipe)
    assert {p.name: (p / "blockexpand.json").stat().st_mtime_ns for p in runs.iterdir() if p.name in times} == times
    assert more.arms[0] == dataclasses.replace(first.arms[0], gain_over_reference=None)
    with pytest.raises(ComparisonError, match="holds a run"):
        compare(dataclasses.replace(small, domain_tokens=9 * 2 * 32))


def test_seeds_give_intervals_over_seeds(place: Place, tmp_path: Path) -> None:
    from scipy import stats

    recipe = place.recipe(tmp_path / "out", seeds=(0, 1, 2))
    result = compare(dataclasses.replace(recipe, arms=(dataclasses.replace(recipe.arms[1], lrs=(3e-3,)),)), workers=2)
    (arm,) = result.arms
    base = result.base["domain"].loss
    gains = np.array([base - t.held_out["domain"].loss for t in arm.trials])
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / np.sqrt(3)
    assert len(set(gains)) == 3
    assert (arm.gain.mean, arm.gain.low, arm.gain.high) == pytest.approx(
        (gains.mean(), gains.mean() - half, gains.mean() + half)
    )


def test_arms_get_the_same_data_and_the_reference_only_the_domains(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path, arms=ARMS)
    plans = trial_plans(recipe, {arm.name: Path("m") for arm in recipe.arms}, tmp_path)
    assert len(plans) == 7
    compared = [p.settings for p in plans if not p.unrestricted]
    told = {repr((s.data, s.domain_tokens, s.rows_per_step, s.retention, s.schedule, s.seed)) for s in compared}
    assert len(told) == 1
    (free,) = (p.settings for p in plans if p.unrestricted)
    assert (free.num_domain_rows, free.num_general_rows) == (compared[0].num_domain_rows, 0)
    assert free.num_steps(32) == compared[0].num_steps(32)
    assert free.retention.forgetting_budget is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lrs": (1e-3,)}, "arms: expected the same number of learning rates for every arm, got [1, 2]"),
        ({"name": "LoRA"}, "arms: expected names that differ"),
        ({"lrs": ()}, "lrs: expected at least one learning rate"),
        ({"lrs": (0.0, 1.0)}, "lrs: expected numbers above 0"),
        ({"plan": PlanRecipe(blocks=2)}, "plan: "),
    ],
)
def test_unequal_arms_are_refused(place: Place, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    recipe = place.recipe(tmp_path, arms=ARMS)
    with pytest.raises(RecordError) as caught:
        arms = (recipe.arms[0], dataclasses.replace(recipe.arms[1], **changes), recipe.arms[2])
        dataclasses.replace(recipe, arms=arms)
    assert words in str(caught.value)


def test_a_comparison_needs_general_text(place: Place, tmp_path: Path) -> None:
    data = DataSettings(domain=str(place.domain))
    with pytest.raises(ComparisonError, match="data.general is missing"):
        compare(place.recipe(tmp_path / "o", data=data, retention=NO_RETENTION))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    def at(general: float, domain: float) -> Measurement:
        return Measurement(step=0, domain=domain, general=general, rise=0.0)

    points = [at(2.0, 5.0), at(2.1, 4.0), at(2.2, 4.5), at(2.3, 3.0), at(2.3, 3.5), at(2.0, 5.5), at(2.4, 3.0)]
    assert [(p.general, p.domain) for p in pareto(points)] == [(2.0, 5.0), (2.1, 4.0), (2.3, 3.0)]


def test_a_failed_run_names_itself_and_leaves_the_others(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe(tmp_path / "out")
    bad = ArmRecipe(name="old", arm=OldBlocksArm(kind="old-blocks", blocks=(99,)), lrs=(1e-3,))
    with pytest.raises(TrainingError, match="99"):
        compare(dataclasses.replace(recipe, arms=(recipe.arms[1], bad)))
    assert (tmp_path / "out" / "runs" / "full-lr0.003-seed0" / "eval" / "blockexpand.json").exists()
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_a_killed_comparison_takes_its_runs_with_it(place: Place, tmp_path: Path) -> None:
    """The run would go on for hours; it stops and saves instead, so that the next compare can go on with it."""
    recipe = place.recipe(tmp_path / "out", domain_tokens=10**7, arms=place.recipe(tmp_path).arms[1:])
    (tmp_path / "recipe.yaml").write_text(dump_json(recipe))
    words = [sys.executable, "-m", "blockexpand", "compare", str(tmp_path / "recipe.yaml"), "--quiet"]
    parent = subprocess.Popen(words)
    run = tmp_path / "out" / "runs" / "full-lr0.003-seed0"
    try:
        _wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) > 5)
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: newest_checkpoint(run) is not None)
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    time.sleep(0.5)
    assert max(row["step"] for row in read_metrics(run / "metrics.jsonl")) == read_progress(checkpoint).step


def _wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it did not come about in {seconds:.0f} s"
        time.sleep(0.1)
