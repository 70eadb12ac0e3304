"""What `learn` leaves, and that all of it is what the lower verbs would make of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import blockexpand
from blockexpand.cli.main import run
from blockexpand.errors import LearnError
from blockexpand.expansion import verify
from blockexpand.records import read_record, write_record
from blockexpand.records.learn import LearnRecord
from blockexpand.training import load_settings
from learn_ground import Ground


def test_everything_it_promises_is_there(ground: Ground, learnt: LearnRecord) -> None:
    out = Path(learnt.out)
    for name in ("model/config.json", "pack/pack.json", "report/index.html", "recipe.yaml", "learn.json"):
        assert (out / name).is_file(), name
    assert read_record(LearnRecord, out / "learn.json") == learnt
    assert learnt.learnt is not None
    assert learnt.passed
    assert learnt.learnt.gain > 0.02
    assert learnt.learnt.gain_low is not None
    assert learnt.learnt.gain_low <= learnt.learnt.gain <= (learnt.learnt.gain_high or 0)
    assert learnt.learnt.bypass_is_base
    assert verify(ground.base, out, trained=True).passed
    assert len(learnt.said) == 3
    assert all(said.prompt for said in learnt.said)


def test_its_pack_on_the_base_is_its_model(ground: Ground, learnt: LearnRecord, tmp_path: Path) -> None:
    blockexpand.attach_packs(ground.base, Path(learnt.out) / "pack", tmp_path / "attached")
    theirs = (tmp_path / "attached" / "model.safetensors").read_bytes()
    assert theirs == (Path(learnt.out) / "model" / "model.safetensors").read_bytes()


def test_its_recipe_gives_the_same_bytes(learnt: LearnRecord, tmp_path: Path) -> None:
    blockexpand.train(load_settings(Path(learnt.out) / "recipe.yaml", [f"out={tmp_path / 'again'}"]))
    again = (tmp_path / "again" / "model" / "model.safetensors").read_bytes()
    assert again == (Path(learnt.out) / "model" / "model.safetensors").read_bytes()


def test_a_finished_output_is_finished(ground: Ground, learnt: LearnRecord) -> None:
    out = Path(learnt.out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert ground.learn(out) == learnt
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"keep": 0.25}, "keep"), ({"tokens": 2999}, "2999"), ({"seed": 3}, "seed"), ({"arm": "full"}, "full")],
)
def test_an_output_of_other_settings_is_refused_by_name(
    ground: Ground, learnt: LearnRecord, changes: dict, named: str
) -> None:
    with pytest.raises(LearnError) as raised:
        ground.learn(Path(learnt.out), **changes)
    assert named in str(raised.value)


def test_contents_count_not_paths(ground: Ground, learnt: LearnRecord, tmp_path: Path) -> None:
    """The data at the same path with other contents is other data."""
    lines = ground.data.read_text(encoding="utf-8").splitlines(keepends=True)
    ground.data.write_text("".join([*lines[:-1], json.dumps({"text": "something else altogether"}) + "\n"]))
    try:
        with pytest.raises(LearnError) as raised:
            ground.learn(Path(learnt.out))
    finally:
        ground.data.write_text("".join(lines), encoding="utf-8")
    assert "data's contents" in str(raised.value)


def test_a_dry_run_leaves_nothing(ground: Ground, tmp_path: Path) -> None:
    record = ground.learn(tmp_path / "out", dry_run=True)
    assert record.learnt is None
    assert record.passed
    assert record.plan.num_steps == 8  # of 6 x 64 domain tokens
    assert record.plan.after == (1, 3)
    assert not (tmp_path / "out").exists()


def test_other_arms_are_put_beside_it(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*ground.command(tmp_path / "out"), "--arm", "full", "--against", "lora", "--json", "--quiet"]
    assert run(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["learnt"]["arm"] == "full"
    assert [rival["arm"] for rival in plain["rivals"]] == ["lora"]
    assert plain["rivals"][0]["num_steps"] == plain["learnt"]["num_steps"]
    assert not (tmp_path / "out" / "pack").exists()


def test_what_does_not_hold_ends_with_1_and_says_what_to_try(
    ground: Ground, learnt: LearnRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(learnt.out)
    assert learnt.learnt is not None
    whole = (out / "learn.json").read_bytes()
    kept = learnt.learnt.budget
    nothing = dataclasses.replace(learnt.learnt, domain_after=9.0, gain_low=-4.0, gain_high=-3.0)
    outside = dataclasses.replace(learnt.learnt, budget=dataclasses.replace(kept, scale=0.0))
    broken = dataclasses.replace(learnt.learnt, bypass_is_base=False)
    try:
        for case in (nothing, outside, broken):
            write_record(out / "learn.json", dataclasses.replace(learnt, learnt=case))
            assert run([*ground.command(out), "--quiet"]) == 1
            assert "FAILED" in capsys.readouterr().out
    finally:
        (out / "learn.json").write_bytes(whole)


@pytest.mark.parametrize(
    "first",
    [
        "import blockexpand",
        "import blockexpand.learn",
        "from blockexpand.learn import learn",
        "import blockexpand.cli.learn",
    ],
)
def test_the_public_name_is_the_function_whatever_was_imported_first(first: str) -> None:
    code = f"{first}; import blockexpand; from blockexpand import learn; import types; "
    code += "assert isinstance(learn, types.FunctionType) and blockexpand.learn is learn, learn"
    subprocess.run([sys.executable, "-c", code], check=True)
