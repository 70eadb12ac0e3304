"""Runs: they learn, freeze what they should, keep the budget, resume to the bit, and refuse what cannot be."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.expansion import verify
from blockexpand.records import read_json, read_record
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import (
    DataSettings,
    FullArm,
    LoraArm,
    OldBlocksArm,
    OptimizerSettings,
    RetentionSettings,
    RunRecord,
    TrainSettings,
    read_metrics,
)
from blockexpand.training import Interrupted, sft, train
from blockexpand.training import run as running_module
from blockexpand.training.arms import load_model
from blockexpand.training.checkpoints import OPTIMIZER, TRAINABLE, SavedTensors, newest_checkpoint
from blockexpand.training.loop import Loop
from blockexpand.training.processes import World
from helpers import tree
from training_ground import Ground

KEEPING = RetentionSettings(replay=0.5, kl_weight=0.5, forgetting_budget=0.05)


def losses(out: Path) -> list[dict[str, Any]]:
    """The metrics without the clock's part in them."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(out / "metrics.jsonl")]


def weights(out: Path) -> dict[str, bytes]:
    return tree(out / "model")


def test_a_run_learns_its_domain_and_says_so(ground: Ground, tmp_path: Path) -> None:
    record = train(ground.settings(tmp_path / "run", domain_tokens=40 * 4 * 32, measure_every_steps=10))
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


@pytest.mark.parametrize("retention", [RetentionSettings(), KEEPING], ids=["plain", "keeping"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    ground: Ground, tmp_path: Path, retention: RetentionSettings, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"retention": retention, "optimizer": OptimizerSettings(name=optimizer, lr=3e-3)}  # type: ignore[arg-type]
    train(ground.settings(tmp_path / "whole", **changes))
    settings = ground.settings(tmp_path / "cut", **changes)
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped at step 5 of \d+; resume with --resume"):
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

    def backward(self: Loop, *args: Any) -> None:
        real(self, *args)
        if any(s["step"] == step - 1 for s in read_metrics(self.run_folder / "metrics.jsonl") if s["kind"] == "train"):
            what()

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


def test_the_budget_is_kept_even_when_training_ruins_the_model(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(
        tmp_path / "run",
        retention=dataclasses.replace(KEEPING, forgetting_budget=1e-6),
        optimizer=OptimizerSettings(lr=1.0),
    )
    record = train(settings)
    assert record.best is not None
    assert record.best.step == 0
    assert record.kept is not None
    assert record.kept.scale == 0
    assert not record.kept.holds
    ours, base = (load_model(f, torch.float32) for f in (tmp_path / "run" / "model", ground.base))
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, base(tokens).logits)


def test_the_best_checkpoint_inside_the_budget_is_shipped_not_the_last(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(
        tmp_path / "run",
        retention=RetentionSettings(replay=0.25, forgetting_budget=0.02),
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
    (step,) = {row["step"] for row in inside if row["domain"] == min(row["domain"] for row in inside)}
    assert record.best.step == step
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
    corpus = read_json(tmp_path / "run" / "self-text" / "prose" / "blockexpand.json")
    assert set(corpus["splits"]) == {"replay", "validation"}
    assert corpus["splits"]["replay"]["num_documents"] >= 8 * 2
    again = ground.settings(tmp_path / "again", data=data, retention=KEEPING)
    train(again)
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_conversations_are_tuned_with_every_parameter(ground: Ground, tmp_path: Path) -> None:
    data = DataSettings(domain=str(ground.chats), validation_rows=4)
    settings = ground.settings(
        tmp_path / "run", model=str(ground.expanded), arm=FullArm(kind="full"), data=data, domain_tokens=40 * 4 * 64
    )
    record = sft(settings)
    assert record.best is not None
    assert record.base is not None
    assert record.best.domain < record.base.domain - 0.3
    with pytest.raises(TrainingError, match="domain holds plain text, not conversations"):
        sft(ground.settings(tmp_path / "other"))


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


def test_what_does_not_fit_the_model_is_refused(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running_module.open_data

    def with_a_foreign_token(settings: TrainSettings, world: World) -> Any:
        return dataclasses.replace(real(settings, world), largest_token=999)

    monkeypatch.setattr(running_module, "open_data", with_a_foreign_token)
    with pytest.raises(TrainingError, match=r"the data hold token 999, and .* has embeddings for 320"):
        train(ground.settings(tmp_path / "run"))
    monkeypatch.undo()
    long = dataclasses.replace(DataSettings(domain=str(ground.chats)))
    model = tmp_path / "short"
    import shutil

    from helpers import edit_config

    shutil.copytree(ground.expanded, model)
    edit_config(model, max_position_embeddings=48)
    with pytest.raises(TrainingError, match=r"rows of 64 tokens are longer than the 48 positions of .*short"):
        train(ground.settings(tmp_path / "run2", model=str(model), data=long))


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
