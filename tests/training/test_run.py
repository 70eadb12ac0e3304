"""Runs: they learn, freeze what they should, keep the budget, resume to the bit, and refuse what cannot be."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.corpus import open_corpus
from blockexpand.errors import TrainingError
from blockexpand.expansion import verify
from blockexpand.records import read_record
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import (
    NO_RETENTION,
    BlocksArm,
    DataSettings,
    FullArm,
    LoraArm,
    OldBlocksArm,
    OptimizerSettings,
    RetentionSettings,
    RunRecord,
    load_settings,
    read_metrics,
)
from blockexpand.training import Interrupted, check_run, run_digest, train
from blockexpand.training import export as export_module
from blockexpand.training import loop as loop_module
from blockexpand.training.arms import load_model
from blockexpand.training.checkpoints import OPTIMIZER, TRAINABLE, SavedTensors, newest_checkpoint
from blockexpand.training.loop import Loop
from blockexpand.training.processes import World
from helpers import edit_config, tree
from training_ground import KEEPING, Ground


def losses(out: Path) -> list[dict[str, Any]]:
    """The metrics without the clock's part in them."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(out / "metrics.jsonl")]


def weights(out: Path) -> dict[str, bytes]:
    return tree(out / "model")


def test_a_run_learns_its_domain_and_says_so(ground: Ground, tmp_path: Path) -> None:
    record = train(
        ground.settings(tmp_path / "run", domain_tokens=40 * 4 * 32, measure_every_steps=10, track=("tensorboard",))
    )
    assert record.best is not None
    assert record.base is not None
    assert record.best.domain < record.base.domain - 0.3
    assert record.num_steps == 40
    assert record.num_tokens == 40 * 4 * 32
    assert read_record(RunRecord, tmp_path / "run" / "blockexpand.json") == record
    rows = losses(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "measure"] == [0, 10, 20, 30, 40]
    assert len([row for row in rows if row["kind"] == "train"]) == 40
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_the_trained_checkpoint_still_holds_the_base(ground: Ground, tmp_path: Path) -> None:
    """Old tensors byte for byte, and the bypassed model bit for bit: after training, on disk."""
    train(ground.settings(tmp_path / "run"))
    model = tmp_path / "run" / "model"
    proof = verify(ground.base, model)
    assert proof.trained
    assert proof.passed, proof.lines
    record = read_expansion(model)
    assert record.proof is None
    assert record.training is not None
    assert (
        record.training["settings_digest"]
        == read_record(RunRecord, tmp_path / "run" / "blockexpand.json").settings_digest
    )
    before, after = (digest_tensors(open_checkpoint(f)) for f in (ground.expanded, model))
    changed = {name for name in before if before[name] != after[name]}
    assert {int(name.split(".")[2]) for name in changed} == {2, 5}
    assert len(changed) == 2 * 9


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_course(ground: Ground, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled = (
        ground.settings(tmp_path / name, retention=KEEPING, compile_blocks=name == "compiled")
        for name in ("plain", "compiled")
    )
    train(plain)
    assert counters["stats"]["unique_graphs"] == 0
    train(compiled)
    assert counters["stats"]["unique_graphs"] > 0
    for name in ("domain_loss", "domain"):
        ours, theirs = ([row[name] for row in losses(tmp_path / run) if name in row] for run in ("plain", "compiled"))
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert verify(ground.base, tmp_path / "compiled" / "model").passed


def test_nothing_below_the_first_new_block_is_differentiated(ground: Ground, tmp_path: Path) -> None:
    from blockexpand.live.forward import hidden_states
    from blockexpand.training.arms import Blocks
    from blockexpand.training.data import open_data

    trainee = Blocks().load(ground.expanded, torch.float32, needs_reference=False)
    seen: dict[int, bool] = {}
    for index, block in enumerate(trainee.model.get_decoder().layers):  # type: ignore[operator]
        block.register_forward_hook(lambda _m, _i, out, index=index: seen.__setitem__(index, out.requires_grad))
    batch = open_data(ground.settings(tmp_path), World(device=torch.device("cpu"))).passes(0)[0].batch
    hidden_states(trainee.model, batch)
    assert seen == {0: False, 1: False, 2: True, 3: True, 4: True, 5: True}


@pytest.mark.parametrize("retention", [NO_RETENTION, KEEPING], ids=["plain", "keeping"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    ground: Ground, tmp_path: Path, retention: RetentionSettings, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"retention": retention, "optimizer": OptimizerSettings(name=optimizer, lr=3e-3)}  # type: ignore[arg-type]
    train(ground.settings(tmp_path / "whole", **changes))
    settings = ground.settings(tmp_path / "cut", **changes)
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"step 5 of \d+"):
        train(settings)
    assert not (tmp_path / "cut" / "blockexpand.json").exists()
    monkeypatch.undo()
    train(settings, resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert cut["model.safetensors"] == whole["model.safetensors"]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, what: Any) -> None:
    """Do something in the middle of a step."""
    real = Loop._backward

    def backward(self: Loop, *args: Any) -> torch.Tensor:
        sums = real(self, *args)
        if any(s["step"] == step - 1 for s in read_metrics(self.run_folder / "metrics.jsonl") if s["kind"] == "train"):
            what()
        return sums

    monkeypatch.setattr(Loop, "_backward", backward)


class Killed(BaseException):
    """What a kill looks like from inside: nothing may catch it to save."""


def killed() -> None:
    raise Killed


def test_a_killed_run_goes_on_from_its_newest_checkpoint(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(ground.settings(tmp_path / "whole", retention=KEEPING))
    settings = ground.settings(tmp_path / "cut", retention=KEEPING)
    for step in (2, 5, 8):  # before the first checkpoint, after one, after two
        stop_at(monkeypatch, step, killed)
        with pytest.raises(Killed):
            train(settings, resume=True)
        monkeypatch.undo()
    train(settings, resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert weights(tmp_path / "cut")["model.safetensors"] == weights(tmp_path / "whole")["model.safetensors"]


def test_checkpoints_hold_what_trains_and_only_the_newest_are_kept(ground: Ground, tmp_path: Path) -> None:
    train(ground.settings(tmp_path / "run"))
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    trainable, optimizer = (SavedTensors(checkpoint / name) for name in (TRAINABLE, OPTIMIZER))
    assert {int(name.split(".")[2]) for name in trainable.names} == {2, 5}
    moments = {key.partition("|")[0] for key in optimizer.names}
    assert moments == {"exp_avg", "exp_avg_sq", "step"}


def test_the_same_seed_gives_the_same_run_and_another_another(ground: Ground, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(ground.settings(tmp_path / name, seed=seed))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_fewer_rows_a_pass_give_the_same_step(ground: Ground, tmp_path: Path) -> None:
    train(ground.settings(tmp_path / "whole", retention=KEEPING))
    train(ground.settings(tmp_path / "cut", retention=KEEPING, rows_per_pass=1))
    for a, b in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        for key in a.keys() & {"domain_loss", "general_loss", "kl", "domain", "general"}:
            if a[key] is not None:
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5)


ARMS = {
    "full": FullArm(kind="full"),
    "old": OldBlocksArm(kind="old-blocks", blocks=(1, 3)),
    "lora": LoraArm(kind="lora", rank=4),
}


@pytest.mark.parametrize("arm", sorted(ARMS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_arm_learns_with_retention_in_both_precisions(
    ground: Ground, tmp_path: Path, arm: str, precision: str
) -> None:
    settings = ground.settings(
        tmp_path / "run", model=str(ground.base), arm=ARMS[arm], retention=KEEPING, precision=precision,
        domain_tokens=30 * 2 * 32, optimizer=OptimizerSettings(lr=5e-3),
    )  # fmt: skip
    record = train(settings)
    assert record.best is not None
    assert record.base is not None
    assert record.best.domain < record.base.domain - 0.05
    rows = [row for row in losses(tmp_path / "run") if row["kind"] == "train"]
    # At step 0 every arm is the base, so nothing has moved away from it; later it has.
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4 if precision == "float32" else 2e-2)
    assert rows[-1]["kl"] > rows[0]["kl"]


def test_the_best_checkpoint_inside_the_budget_is_shipped_not_the_last(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(
        tmp_path / "run",
        retention=RetentionSettings(replay=0.25, ce_weight=1.0, kl_weight=0.0, forgetting_budget=0.02),
        optimizer=OptimizerSettings(lr=2e-2),
        domain_tokens=40 * 3 * 32,
        measure_every_steps=2,
    )
    record = train(settings)
    measured = [row for row in losses(tmp_path / "run") if row["kind"] == "measure"]
    inside = [row for row in measured if row["budget_used"] <= 1]
    assert record.best is not None
    assert record.kept is not None
    assert record.kept.holds
    assert record.kept.texts[0].bound is not None
    assert record.kept.texts[0].bound <= 0.02
    assert len(inside) < len(measured), "the trial was too tame to show anything"
    weights_seen = {row["general_weight"] for row in measured}
    assert max(weights_seen) > 1.0


def test_a_loss_that_explodes_stops_the_run_in_one_line(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run", optimizer=OptimizerSettings(lr=1e30))
    with pytest.raises(TrainingError, match=r"not finite in 3 steps in a row.*lower optimizer.lr \(1e\+30\)"):
        train(settings)


def test_general_text_can_be_the_bases_own(ground: Ground, tmp_path: Path) -> None:
    data = DataSettings(domain=str(ground.domain), general="self", validation_rows=4)
    record = train(ground.settings(tmp_path / "run", data=data, retention=KEEPING))
    assert record.best is not None
    assert record.best.general is not None
    corpus = open_corpus(tmp_path / "run" / "self-text" / "prose").record
    assert set(corpus.splits) == {"replay", "validation"}
    assert corpus.splits["replay"].num_rows >= 8 * 2
    assert record.kept is not None
    assert record.kept.texts[0].text == "own prose"
    assert record.kept.texts[0].num_documents >= record.kept.least_documents
    again = ground.settings(tmp_path / "again", data=data, retention=KEEPING)
    train(again)
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_conversations_are_tuned_with_every_parameter(ground: Ground, tmp_path: Path) -> None:
    data = DataSettings(domain=str(ground.chats), validation_rows=4)
    settings = ground.settings(
        tmp_path / "run", model=str(ground.expanded), arm=FullArm(kind="full"), data=data, domain_tokens=40 * 4 * 64
    )
    record = train(settings)
    assert record.best is not None
    assert record.base is not None
    assert record.best.domain < record.base.domain - 0.3


def test_a_run_does_not_write_over_another(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run")
    train(settings)
    before = tree(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"run already holds a run; add --resume"):
        train(settings)
    other = dataclasses.replace(settings, optimizer=OptimizerSettings(lr=0.5))
    with pytest.raises(TrainingError, match=r"begun with other settings: optimizer.lr was 0.003, is 0.5; restore them"):
        train(other, resume=True)
    assert tree(tmp_path / "run") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    with pytest.raises(TrainingError, match="mine exists and is not a run folder"):
        train(ground.settings(tmp_path / "mine"))


def test_what_does_not_fit_is_refused_by_dry_run_and_run_and_leaves_out_free(ground: Ground, tmp_path: Path) -> None:
    short, small = tmp_path / "short", tmp_path / "small"
    for folder in (short, small):
        shutil.copytree(ground.expanded, folder)
    edit_config(short, max_position_embeddings=48)
    edit_config(small, vocab_size=10)
    chats = DataSettings(domain=str(ground.chats))
    for settings, value in (
        (ground.settings(tmp_path / "run", model=str(short), data=chats), "48"),
        (ground.settings(tmp_path / "run", model=str(small)), "embeddings for 10"),
    ):
        for check in (check_run, train):
            with pytest.raises(TrainingError, match=value):
                check(settings)
    assert not (tmp_path / "run").exists()
    train(ground.settings(tmp_path / "run", domain_tokens=4 * 32))


def test_contents_tell_runs_apart_and_names_do_not(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkpoint, or another corpus, under the name of the one that the run began with is refused."""
    model, domain = tmp_path / "model", tmp_path / "domain"
    shutil.copytree(ground.expanded, model)
    shutil.copytree(ground.domain, domain)
    data = DataSettings(domain=str(domain), general=str(ground.general), validation_rows=4)
    settings = ground.settings(tmp_path / "run", model=str(model), data=data)
    stop_at(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        train(settings)
    monkeypatch.undo()
    digest = run_digest(settings)
    weights_file = model / "model.safetensors"
    whole = weights_file.read_bytes()
    weights_file.write_bytes(whole[:-4] + bytes([1, 2, 1, 2]))
    assert run_digest(settings) != digest
    with pytest.raises(TrainingError, match="contents of model"):
        train(settings, resume=True)
    weights_file.write_bytes(whole)
    shutil.rmtree(domain)
    shutil.copytree(ground.general, domain)
    with pytest.raises(TrainingError, match="contents of domain"):
        train(settings, resume=True)
    shutil.rmtree(domain)
    shutil.copytree(ground.domain, domain)
    moved = tmp_path / "moved"
    model.rename(moved)
    record = train(dataclasses.replace(settings, model=str(moved)), resume=True)
    assert record.settings_digest == digest


def test_a_finished_run_is_finished(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ground.settings(tmp_path / "run")
    record = train(settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert train(settings, resume=True) == record
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    # Without its record, as after a kill just before the end, the model stays until the new one stands.
    (tmp_path / "run" / "blockexpand.json").unlink()
    real = export_module.copy_files

    def watched(*args: Any) -> None:
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
        real(*args)

    monkeypatch.setattr(export_module, "copy_files", watched)
    first = weights(tmp_path / "run")
    train(settings, resume=True)
    assert weights(tmp_path / "run")["model.safetensors"] == first["model.safetensors"]
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(TrainingError, match="ended at step 8"):
        train(settings, resume=True)


def test_passes_and_checkpoints_may_change_on_resume(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ground.settings(tmp_path / "run", retention=KEEPING)
    stop_at(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        train(settings)
    monkeypatch.undo()
    record = train(dataclasses.replace(settings, rows_per_pass=2, checkpoint_every_steps=1), resume=True)
    assert record.num_steps == 16


def test_retention_is_on_unless_it_is_written_off(ground: Ground, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    plain: dict[str, Any] = {
        "model": str(ground.expanded), "out": str(tmp_path / "run"), "data": {"domain": str(ground.domain)},
        "domain_tokens": 4 * 32, "rows_per_step": 4, "rows_per_pass": 4, "track": [],
    }  # fmt: skip
    recipe.write_text(json.dumps(plain))
    settings = load_settings(recipe)
    assert settings.general == "self"
    assert settings.num_general_rows == 1
    assert isinstance(settings.arm, BlocksArm)
    assert train(settings).settings.retention.kl_weight > 0
    assert [row["kl"] is not None for row in losses(tmp_path / "run") if row["kind"] == "train"] == [True, True]
    recipe.write_text(json.dumps({**plain, "retention": "none"}))
    assert load_settings(recipe).retention == load_settings(recipe, ["retention=none"]).retention == NO_RETENTION
    recipe.write_text(json.dumps({**plain, "model": str(ground.base)}))
    assert isinstance(load_settings(recipe).arm, FullArm)


def test_nothing_inside_the_budget_is_said(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(
        tmp_path / "run",
        retention=dataclasses.replace(KEEPING, forgetting_budget=1e-6),
        optimizer=OptimizerSettings(lr=1.0),
    )
    record = train(settings)
    assert record.nothing_inside_budget
    assert record.kept is not None
    assert (record.kept.scale, record.kept.holds) == (0, False)
    assert record.best is not None
    assert record.best.step == 0
    training = read_expansion(tmp_path / "run" / "model").training
    assert training is not None
    assert training["nothing_inside_budget"]
    ours, base = (load_model(f, torch.float32) for f in (tmp_path / "run" / "model", ground.base))
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, base(tokens).logits)


def test_the_prefix_is_run_once_and_gives_the_same_bits(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(ground.settings(tmp_path / "shared", retention=KEEPING))
    monkeypatch.setattr(loop_module, "shares_prefix", lambda *_: False)
    train(ground.settings(tmp_path / "twice", retention=KEEPING))
    assert losses(tmp_path / "shared") == losses(tmp_path / "twice")


def test_damaged_checkpoints_are_refused(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ground.settings(tmp_path / "run")
    stop_at(monkeypatch, 5, killed)
    with pytest.raises(Killed):
        train(settings)
    monkeypatch.undo()
    optimizer = tmp_path / "run" / "checkpoints" / "step-00000003" / "optimizer.safetensors"
    whole = optimizer.read_bytes()
    optimizer.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"optimizer.safetensors is missing or damaged"):
        train(settings, resume=True)
