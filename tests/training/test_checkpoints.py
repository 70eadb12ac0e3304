"""Saving in the background: whole or not at all, no larger than what it holds, and errors that are heard."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockexpand.cli.main import run
from blockexpand.errors import StagingError, TrainingError
from blockexpand.training import checkpoints as saving_module
from blockexpand.training import train
from blockexpand.training.arms import Blocks
from blockexpand.training.checkpoints import (
    OPTIMIZER,
    TRAINABLE,
    Progress,
    SavedTensors,
    Saver,
    checkpoint_job,
    newest_checkpoint,
    optimizer_tensors,
    read_progress,
    restore_optimizers,
    restore_trainable,
)
from blockexpand.training.loop import Loop
from blockexpand.training.processes import World
from helpers import make_base
from lm_helpers import make_expanded
from training_ground import Ground

ALONE = World(device=torch.device("cpu"))
PROGRESS = Progress(step=3)


def stepped(parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """An optimiser that has taken a step."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def save(run: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Path:
    saver = Saver(ALONE)
    tensors = optimizer_tensors([optimizer], {p: n for n, p in parameters.items()})
    saver.start(checkpoint_job(run, PROGRESS, (parameters, tensors), keep=2, leads=True))
    saver.finish()
    saver.close()
    newest = newest_checkpoint(run)
    assert newest is not None
    return newest


@pytest.fixture
def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {"a.weight": torch.nn.Parameter(torch.randn(3, 5)), "b.bias": torch.nn.Parameter(torch.randn(7))}


def test_a_checkpoint_is_read_back_to_the_bit(parameters: dict[str, torch.nn.Parameter], tmp_path: Path) -> None:
    optimizer = stepped(parameters)
    folder = save(tmp_path, parameters, optimizer)
    assert folder.name == "step-00000003"
    assert read_progress(folder) == PROGRESS
    assert load_file(folder / TRAINABLE).keys() == parameters.keys()  # plain safetensors, for anybody
    fresh = {name: torch.nn.Parameter(torch.zeros_like(p)) for name, p in parameters.items()}
    restore_trainable(fresh, SavedTensors(folder / TRAINABLE))
    other = torch.optim.AdamW(fresh.values(), lr=1e-3)
    restore_optimizers([other], {p: n for n, p in fresh.items()}, SavedTensors(folder / OPTIMIZER))
    for name, parameter in parameters.items():
        assert torch.equal(fresh[name], parameter)
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[fresh[name]][key], value)


def test_a_checkpoint_is_no_larger_than_masters_and_moments(tmp_path: Path) -> None:
    """At most 1.02 times the bytes of the new blocks' float32 masters and two moments: nothing of the base."""
    base = make_base(tmp_path / "base", hidden_size=256, intermediate_size=512)
    trainee = Blocks().load(make_expanded(tmp_path / "expanded", base), torch.bfloat16, needs_reference=False)
    parameters = dict(trainee.trainable)
    folder = save(tmp_path / "run", parameters, stepped(parameters))
    held = sum(file.stat().st_size for file in folder.iterdir())
    assert held <= 1.02 * 3 * 4 * sum(p.numel() for p in parameters.values())


def test_writing_does_not_hold_up_training(
    parameters: dict[str, torch.nn.Parameter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved is what was there when it was asked for, however late it is written."""
    may_write, real = threading.Event(), saving_module._write_mine

    def late(*args: object) -> None:
        assert may_write.wait(60)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(saving_module, "_write_mine", late)
    saver, before = Saver(ALONE), parameters["b.bias"].detach().clone()
    saver.start(checkpoint_job(tmp_path, PROGRESS, (parameters, {}), keep=2, leads=True))
    with torch.no_grad():
        parameters["b.bias"].add_(1)
    saver.check()
    assert newest_checkpoint(tmp_path) is None
    may_write.set()
    saver.finish()
    saver.close()
    assert torch.equal(load_file(tmp_path / "checkpoints" / "step-00000003" / TRAINABLE)["b.bias"], before)


def test_an_error_while_writing_is_raised_at_the_next_step(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving_module, "_put", full)
    with pytest.raises(StagingError, match="no space left on the device while writing .*step-00000003"):
        train(ground.settings(tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_what_a_crash_left_is_removed(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run")
    train(settings)
    left = tmp_path / "run" / "checkpoints" / ".step-00000009.partial"
    left.mkdir()
    (left / TRAINABLE).write_bytes(b"half")
    (tmp_path / "run" / "blockexpand.json").unlink()  # as if it had been killed before the end
    train(settings, resume=True)
    assert not left.exists()


def test_files_cut_short_and_of_another_plan_are_refused(
    parameters: dict[str, torch.nn.Parameter], tmp_path: Path
) -> None:
    folder = save(tmp_path, parameters, stepped(parameters))
    whole = (folder / OPTIMIZER).read_bytes()
    (folder / OPTIMIZER).write_bytes(whole[:-10])
    with pytest.raises(
        TrainingError, match=rf"optimizer.safetensors is missing or damaged .*{len(whole) - 10:,} bytes"
    ):
        SavedTensors(folder / OPTIMIZER)
    saved = SavedTensors(folder / TRAINABLE)
    longer = {**parameters, "b.bias": torch.nn.Parameter(torch.zeros(8))}
    with pytest.raises(
        TrainingError, match=r"has b.bias of shape \[7\], and the run's is \[8\]; expected the same plan"
    ):
        restore_trainable(longer, saved)
    with pytest.raises(TrainingError, match=r"do not train the same tensors: b.bias is in the checkpoint only"):
        restore_trainable({"a.weight": parameters["a.weight"]}, saved)
    with pytest.raises(TrainingError, match=r"c is in the run only"):
        restore_trainable({**parameters, "c": parameters["b.bias"]}, saved)
    optimizer = torch.optim.AdamW(parameters.values())
    (folder / OPTIMIZER).write_bytes(whole)
    names = {p: n for n, p in parameters.items()}
    with pytest.raises(TrainingError, match="no optimiser state for other"):
        restore_optimizers([optimizer], dict.fromkeys(names, "other"), SavedTensors(folder / OPTIMIZER))
    optimizer = torch.optim.AdamW([parameters["a.weight"]])
    with pytest.raises(TrainingError, match="has optimiser state for b.bias, which does not train here"):
        restore_optimizers([optimizer], names, SavedTensors(folder / OPTIMIZER))


def test_the_best_weights_are_not_replaced_by_the_last(ground: Ground, tmp_path: Path) -> None:
    from training_ground import KEEPING

    wide = dataclasses.replace(KEEPING, forgetting_budget=0.9)  # every step is inside, on whatever machine
    settings = ground.settings(tmp_path / "run", retention=wide)
    record = train(settings)
    assert record.best is not None
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    best = read_progress(newest).best
    assert best is not None
    assert best.step == record.best.step, "the record's is of what was shipped, scaled"
    folders = sorted(p.name for p in (tmp_path / "run" / "best").iterdir())
    assert f"step-{record.best.step:08d}" in folders
    for folder in (tmp_path / "run" / "best").iterdir():
        (folder / TRAINABLE).unlink()
    (tmp_path / "run" / "blockexpand.json").unlink()
    with pytest.raises(TrainingError, match=rf"best/step-{record.best.step:08d}/trainable.safetensors is missing"):
        train(settings, resume=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_preempted_run_ends_with_0_and_an_interrupted_one_with_130(
    ground: Ground,
    tmp_path: Path,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Between two passes: the step under way is given up, and what is saved is the state before it."""
    import json

    settings = {
        "model": str(ground.expanded), "out": str(tmp_path / "run"), "rows_per_step": 4, "rows_per_pass": 1,
        "data": {"domain": str(ground.domain), "validation_rows": 0}, "domain_tokens": 8 * 4 * 32,
        "retention": "none",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    real, passes = Loop._backward, iter(range(10**6))

    def backward(self: Loop, *args: object) -> torch.Tensor:
        if next(passes) == 4 * 2 + 1:  # the third step's second pass
            os.kill(os.getpid(), number)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "_backward", backward)
    words = ["train", str(tmp_path / "recipe.yaml"), "--quiet"]
    assert run(words) == code
    said = capsys.readouterr().err
    assert "stopped at step 2 of 8" in said
    assert f"blockexpand train {tmp_path / 'recipe.yaml'} --resume" in said
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert read_progress(newest).step == 2
    monkeypatch.undo()
    assert run([*words, "--resume"]) == 0
