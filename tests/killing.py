"""Runs that are killed (SIGKILL) at random moments and resumed until they end: what they leave must be what an
uninterrupted run leaves. For tests/training/test_killing.py and benchmarks/kills.py."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

from blockexpand.records.run import TrainSettings, read_metrics


@dataclasses.dataclass(frozen=True)
class Killed:
    """What some runs went through."""

    run_folders: list[Path]
    """Those that ended, each after being killed at least once."""
    moments: list[tuple[float, int]]
    """Of each kill: seconds after the start of the process, and the last step that metrics.jsonl had then."""


def run_in_child(settings: TrainSettings) -> None:
    """Train to the end, from wherever the run stands."""
    import torch
    from transformers.utils import logging

    from blockexpand.training import train

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    train(settings, resume=True)


def context() -> Any:
    """Processes that have everything imported when they start, so that kills fall into the run."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["blockexpand.training.run", "transformers", "torch.utils.tensorboard"])
    return server


def killed_at_random(settings: TrainSettings, seconds: float, num_kills: int, seed: int) -> Killed:
    """Kill so many times at moments drawn from 0 to `seconds`, and go on each time; when a run ends, begin another.

    `settings.out` is the uninterrupted run's; the killed ones lie beside it.
    """
    draws, server = random.Random(seed), context()
    moments: list[tuple[float, int]] = []
    folders: list[Path] = []
    number, since = 0, 0
    while len(moments) < num_kills or since:
        mine = dataclasses.replace(settings, out=f"{settings.out}-killed-{number}")
        child = server.Process(target=run_in_child, args=(mine,))
        child.start()
        begun, moment = time.monotonic(), draws.uniform(0, seconds)
        child.join(moment if len(moments) < num_kills else None)
        if child.is_alive():
            child.kill()
            child.join()
            steps = [row["step"] for row in read_metrics(Path(mine.out) / "metrics.jsonl")]
            moments.append((time.monotonic() - begun, max(steps, default=0)))
            since += 1
            continue
        assert child.exitcode == 0, f"a resumed run ended with {child.exitcode}"
        if not since:  # what a whole run takes at its quickest: the machine may have been busy at first
            seconds = min(seconds, time.monotonic() - begun)
        folders += [Path(mine.out)] if since else []
        number, since = number + 1, 0
    return Killed(run_folders=folders, moments=moments)


def course(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock's part in them."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run / "metrics.jsonl")]


def shipped(run: Path) -> dict[str, bytes]:
    """Every byte of the model that a run gave, but for its record (which names the run's folder)."""
    files = sorted(p for p in (run / "model").rglob("*") if p.is_file() and p.name != "blockexpand.json")
    return {str(p.relative_to(run)): p.read_bytes() for p in files}
