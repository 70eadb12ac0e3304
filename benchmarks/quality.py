"""How soon do new blocks reach the same domain loss, and what have they forgotten by then?

On the tiny base, with the demo's Python and English (`learning.py` prepares them under `runs/learning/`), four new
blocks, 48,000 domain tokens in 32 steps of six rows of 256:

- as LLaMA-Factory trains them by default: AdamW (betas 0.9 and 0.999, no weight decay), cosine without warm-up,
  clipping at 1, no retention; learning rates 1e-4, 1e-3 and 3e-3, of which the one with the lowest domain loss
  at the end counts. It runs in our loop, which is quicker than its own (`benchmarks/train.py`), so its times are
  a lower bound of what it would take;
- ours: Muon at 2e-2 with two rows of general text in every step, KL to the base inside, weight 8 (docs/log.md).

Measured every four steps on the same held-out rows; CPU seconds are those of the steps, without the measuring. Each
run is a process of its own.

    .venv/bin/python benchmarks/quality.py [--json]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Row, machine, parser_of, run_task, serve_or, show

_THEIRS = {f"LLaMA-Factory's settings, {lr:g}": lr for lr in (1e-4, 1e-3, 3e-3)}
_OURS = "blockexpand"


def _run(lr: float | None, expanded: str, out: str) -> list[dict[str, float]]:
    """One run: the CPU seconds, domain loss and general loss at each measurement."""
    from blockexpand.records.run import (
        BlocksArm,
        DataSettings,
        OptimizerSettings,
        RetentionSettings,
        ScheduleSettings,
        TrainSettings,
    )
    from blockexpand.training import run as running
    from blockexpand.training import train
    from blockexpand.training.metrics import Tracker
    from learning import make_texts

    texts = make_texts()

    course: list[dict[str, float]] = []

    class Watching(Tracker):
        """Adds up the CPU seconds of steps, and notes them with each measurement."""

        total, last = 0.0, time.process_time()

        def write(self, step: int, kind: str, *rest: Any, **named: Any) -> None:
            super().write(step, kind, *rest, **named)
            now = time.process_time()
            if kind == "train":
                self.total += now - self.last
            if kind == "measure":
                figures = rest[0]
                course.append({"step": step, "cpu": self.total, **{k: figures[k] for k in ("domain", "general")}})
            self.last = time.process_time()

    vars(running)["Tracker"] = Watching
    theirs = lr is not None
    train(
        TrainSettings(
            model=expanded,
            out=out,
            arm=BlocksArm(),
            data=DataSettings(domain=texts["domain"], general=texts["general"], validation_rows=16),
            domain_tokens=48_000 if theirs else 21_500,
            rows_per_step=6 if theirs else 7,
            rows_per_pass=6 if theirs else 7,
            optimizer=OptimizerSettings(lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
            if lr is not None
            else OptimizerSettings(name="muon", lr=5e-2),
            schedule=ScheduleSettings(warmup=0.0) if theirs else ScheduleSettings(),
            # Theirs is given no general row to train on; a budget it cannot leave lets its general loss be measured.
            retention=RetentionSettings(replay=0.0, kl_weight=0.0, forgetting_budget=1e6)
            if theirs
            else RetentionSettings(replay=1 / 7, ce_weight=0.0, kl_weight=8.0, forgetting_budget=1e6),
            measure_every_steps=2,
        )
    )
    return course


def _expand(out: str) -> None:
    from blockexpand import expand, plan
    from blockexpand.data import TINY_BASE as BASE

    expand(BASE, Path(out), plan(BASE, 4))


def _cost(expanded: str) -> float:
    """CPU seconds that LLaMA-Factory's own way takes for a step of six rows of 256 tokens."""
    from blockexpand.checkpoint import open_checkpoint
    from train import trainer, write_rows

    work = Path(expanded).parent
    (work / "model").symlink_to(expanded)
    write_rows(work, open_checkpoint(Path(expanded)).config["vocab_size"], (4 * 6, 256))
    return 6 / 4 * trainer(str(work), "float32", "trainable")["cpu_seconds"]


def _reached(course: list[dict[str, float]], goal: float) -> dict[str, float] | None:
    """The first measurement at or below a domain loss."""
    return next((point for point in course if point["domain"] <= goal), None)


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-quality-") as folder:
        expanded = f"{folder}/expanded"
        run_task(__file__, "expand", out=expanded)
        courses = {}
        for number, (name, lr) in enumerate({**_THEIRS, _OURS: None}.items()):
            print(f"  {name}", file=sys.stderr, flush=True)
            courses[name] = run_task(__file__, "run", lr=lr, expanded=expanded, out=f"{folder}/run-{number}")
        own = run_task(__file__, "cost", expanded=expanded)
    best = min(_THEIRS, key=lambda name: courses[name][-1]["domain"])
    goal, whole = courses[best][-1]["domain"], courses[best][-1]["cpu"]
    whole_own = own * courses[best][-1]["step"]
    rows: list[Row] = []
    for name, course in courses.items():
        first, last, there = course[0], course[-1], _reached(course, goal)
        rows.append(
            {
                "who": name + (" (the best of three)" if name == best else ""),
                "domain loss": f"{first['domain']:.3f} to {last['domain']:.3f}",
                "forgetting at the end": f"{last['general'] / first['general'] - 1:+.2%}",
                f"steps to {goal:.3f}": f"{there['step']} of {last['step']}" if there else "not reached",
                "CPU s to it": f"{there['cpu']:.1f}" if there else "",
                "times the best of three": f"{there['cpu'] / whole:.2f}" if there else "",
                "times it in its own way": f"{there['cpu'] / whole_own:.2f}" if there else "",
                "forgetting then": f"{there['general'] / first['general'] - 1:+.2%}" if there else "",
            }
        )
    show("time to the same domain loss on the tiny base, 4 new blocks", facts, rows, arguments.json)


if __name__ == "__main__":
    serve_or(main, {"run": _run, "expand": _expand, "cost": _cost})
