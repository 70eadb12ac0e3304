"""Killed or stopped at any moment, the same command goes on and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockexpand.records.learn import LearnRecord
from learn_ground import Ground, weights


def start(ground: Ground, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "blockexpand", *ground.command(out), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def stop_when(process: subprocess.Popen[str], path: Path, how: signal.Signals) -> int:
    """Stop it as soon as something is there; its exit code."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(how)
    return process.wait()


@pytest.mark.parametrize("there", ["work/domain.partial", "work/domain", "work/expanded", "checkpoints", "model"])
def test_killed_at_a_border_it_ends_with_the_same_bytes(
    ground: Ground, learnt: LearnRecord, tmp_path: Path, there: str
) -> None:
    out = tmp_path / "out"
    assert stop_when(start(ground, out), out / there, signal.SIGKILL) == -signal.SIGKILL
    assert not (out / "learn.json").exists()
    ground.learn(out)
    assert weights(out) == weights(Path(learnt.out))


def test_ctrl_c_saves_and_says_that_the_same_command_goes_on(
    ground: Ground, learnt: LearnRecord, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(ground, out)
    assert stop_when(process, out / "metrics.jsonl", signal.SIGINT) == 130
    assert process.stderr is not None
    assert "the same command" in process.stderr.read()
    ground.learn(out)
    assert weights(out) == weights(Path(learnt.out))


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(
    ground: Ground, learnt: LearnRecord, tmp_path: Path
) -> None:
    draws, out, kills = random.Random(7), tmp_path / "out", 0
    begun = time.monotonic()
    start(ground, tmp_path / "whole").wait()
    seconds = time.monotonic() - begun
    while kills < 10:
        process = start(ground, out)
        try:
            process.wait(draws.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        assert weights(out) == weights(Path(learnt.out))
        os.rename(out, tmp_path / f"out-{kills}")
    ground.learn(out)
    assert weights(out) == weights(Path(learnt.out))
