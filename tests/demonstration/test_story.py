"""The demo's story, told small: every stage leaves its artifact, goes on after a stop, refuses what is not its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from blockexpand.cli.main import run
from blockexpand.corpus import Source
from blockexpand.demonstration import chapters as chapters_module
from blockexpand.demonstration import demo
from blockexpand.demonstration import recipe as recipe_module
from blockexpand.demonstration import story as story_module
from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.recipe import DemoRecipe, InstructionCounts, load_demo
from blockexpand.errors import DemonstrationError
from blockexpand.expansion import verify
from blockexpand.records import read_record
from blockexpand.records.comparison import read_comparison
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.expansion import Proof
from blockexpand.reporting import read_stages
from lm_helpers import sentences


def small(folder: Path) -> DemoRecipe:
    """The demo with the texts of a language test, a few steps a run, and two methods."""
    recipe = load_demo(False)
    sources = {}
    for name, seed in (("domain", 1), ("general", 2)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in sentences(300, seed)))
        sources[name] = (Source(path=str(path)),)
    arms = tuple(arm for arm in recipe.arms if arm.arm.kind in ("blocks", "lora"))
    return dataclasses.replace(
        recipe,
        domain=dataclasses.replace(recipe.domain, sources=sources["domain"]),
        general=dataclasses.replace(recipe.general, sources=sources["general"]),
        instructions=InstructionCounts(num_train=60, num_test=16),
        domain_tokens=2 * 6 * 256,
        measure_every_steps=1,
        arms=tuple(dataclasses.replace(arm, lrs=arm.lrs[:1]) for arm in arms),
        instruct=dataclasses.replace(recipe.instruct, domain_tokens=2 * 3 * 256),
        full=dataclasses.replace(recipe.full, lrs={arm.name: arm.lrs for arm in arms}),
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> DemoRecipe:
    return small(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(recipe: DemoRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("story") / "demo-out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_module, "load_demo", lambda _: recipe)
        told = demo(out)
    assert Path(told.report).is_file()
    assert "Block expansion" in told.text
    assert len(told.stages) == 9
    return out


def test_every_stage_leaves_its_artifact(finished: Path) -> None:
    assert (finished / "plan.json").is_file()
    assert read_record(Proof, finished / "proof.json").passed
    assert verify(BASE, finished / "expanded").passed
    comparison = read_comparison(finished / "comparison")
    assert {arm.name for arm in comparison.arms} == {"block expansion", "LoRA"}
    for name in ("answers-before", "answers-after"):
        assert len(read_evaluation(finished / name).answered) == 16
    assert [stage.name for stage in read_stages(finished).stages][-1] == "The same budget for the other methods"
    page = (finished / "report" / "index.html").read_text()
    checks = read_record(Proof, finished / "proof.json").checks
    assert page.count('class="good">holds</span>') == len(checks)


def test_what_was_trained_still_holds_the_base(finished: Path) -> None:
    arm = read_comparison(finished / "comparison").arms[0]
    model = finished / "comparison" / arm.trials[0].run / "model"
    assert verify(BASE, model, trained=True).passed


def test_a_finished_demo_is_not_replaced_unasked(finished: Path) -> None:
    with pytest.raises(DemonstrationError, match="holds a finished demo: open"):
        demo(finished)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DemonstrationError, match="no demo's folder"):
            demo(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unfinished_demo_of_other_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"demo": "sha256:other", "blockexpand_version": "0"}))
    with pytest.raises(DemonstrationError, match="unfinished demo of other settings; add --overwrite"):
        demo(tmp_path)


def test_it_goes_on_where_it_stopped(
    recipe: DemoRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the fourth stage; the second call does not expand again."""
    out = tmp_path / "demo-out"
    monkeypatch.setattr(recipe_module, "load_demo", lambda _: recipe)

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chapters_module, "prepare", interrupted)
        assert run(["demo", "--out", str(out)]) == 130
    written = (out / "expanded" / "model.safetensors").stat().st_mtime_ns
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(story_module, "say", told.append)
        patch.setattr(chapters_module, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo(out)
    assert (out / "expanded" / "model.safetensors").stat().st_mtime_ns == written
    assert sum("done before" in line for line in told) == 3
    assert told[0].startswith("Going on with the demo")
