"""What does keeping cost? A step with retention beside one without, on as many rows.

On the tiny base with four new blocks, steps of eight rows of 256 tokens, AdamW: all of them domain text without
retention; six of domain text and two of general text as `replay` (cross-entropy); the same two with KL to the base
inside (`kl_weight`), which runs the base once more on these two. CPU seconds of a step, the first left out; each run is
a process of its own, rounds alternate.

    .venv/bin/python benchmarks/retention.py [--rounds 3] [--json]
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from measuring import Row, alternate, machine, parser_of, ratios, run_task, serve_or, show

_WAYS: dict[str, dict[str, float]] = {
    "no retention": {"replay": 0.0, "kl_weight": 0.0},
    "replay 0.25": {"replay": 0.25, "ce_weight": 1.0, "kl_weight": 0.0},
    "replay 0.25, KL to the base": {"replay": 0.25, "ce_weight": 0.0, "kl_weight": 8.0},
}
_STEPS = 6


def _run(expanded: str, retention: dict[str, Any]) -> float:
    """CPU seconds of a step: the median, the first left out."""
    from blockexpand.records.run import BlocksArm, DataSettings, RetentionSettings, TrainSettings
    from blockexpand.training import run as running
    from blockexpand.training import train
    from blockexpand.training.metrics import Tracker
    from learning import make_texts

    texts = make_texts()

    seconds: list[float] = []

    class Watching(Tracker):
        """Notes the CPU time at each step's end."""

        def write(self, step: int, kind: str, *rest: Any, **named: Any) -> None:
            super().write(step, kind, *rest, **named)
            if kind == "train":
                seconds.append(time.process_time())

    vars(running)["Tracker"] = Watching
    share = 1 - retention.get("replay", 0.0)
    with tempfile.TemporaryDirectory() as out:
        train(
            TrainSettings(
                model=expanded,
                out=f"{out}/run",
                arm=BlocksArm(),
                data=DataSettings(domain=texts["domain"], general=texts["general"], validation_rows=0),
                domain_tokens=round(8 * share) * 256 * _STEPS,
                rows_per_step=8,
                rows_per_pass=8,
                retention=RetentionSettings(**retention),
                measure_every_steps=10**6,
            )
        )
    return statistics.median(b - a for a, b in itertools.pairwise(seconds))


def _expand(out: str) -> None:
    from blockexpand import expand, plan
    from blockexpand.data import TINY_BASE as BASE

    expand(BASE, Path(out), plan(BASE, 4))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-retention-") as folder:
        run_task(__file__, "expand", out=f"{folder}/expanded")
        runs = {
            name: partial(run_task, __file__, "run", expanded=f"{folder}/expanded", retention=how)
            for name, how in _WAYS.items()
        }
        found = alternate(runs, arguments.rounds)
    plain = found["no retention"]
    rows: list[Row] = [
        {
            "a step of 8 rows": name,
            "CPU s": f"{statistics.median(times):.2f}",
            "times no retention": ratios(times, plain),
            "the same per domain token": f"{statistics.median(times) / statistics.median(plain) / share:.2f}",
        }
        for (name, times), share in zip(found.items(), (1.0, 0.75, 0.75), strict=True)
    ]
    show("the cost of retention on the tiny base, 4 new blocks", facts, rows, arguments.json)


if __name__ == "__main__":
    serve_or(main, {"run": _run, "expand": _expand})
