"""How long does the command line take to answer, and to plan?

Compared: whole-process wall time of `blockexpand --help`, `--version` and `plan` (of a tiny Llama written for this
run; planning reads headers and config only, so the model's size hardly matters), against `python -c pass` (the
floor of any Python program) and `python -c 'import torch'` (what a tool pays that imports torch first). Rounds
alternate; the first one warms the page cache and is dropped.

Goals: --help below 0.2 s, plan below 0.5 s.

    .venv/bin/python benchmarks/startup.py [--rounds 15] [--json]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from expand import SHAPES, write_llama
from measuring import Row, Spread, alternate, machine, measure, parser_of, ratios, show

GOALS_SECONDS = {"blockexpand --help": 0.2, "blockexpand plan": 0.5}


def _row(name: str, seconds: dict[str, list[float]]) -> Row:
    spread, goal = Spread.of(seconds[name]), GOALS_SECONDS.get(name)
    verdict = "" if goal is None else f"< {goal} s: {'met' if spread.median < goal else 'MISSED'}"
    return {
        "command": name,
        "seconds": spread,
        "times python -c pass": ratios(seconds[name], seconds["python -c pass"]),
        "times import torch": ratios(seconds[name], seconds["python -c 'import torch'"]),
        "goal": verdict,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-startup-") as work:
        base = Path(work) / "tiny"
        write_llama(base, SHAPES["tiny"])
        ours = str(Path(sys.executable).with_name("blockexpand"))
        commands = {
            "blockexpand --help": [ours, "--help"],
            "blockexpand --version": [ours, "--version"],
            "blockexpand plan": [ours, "plan", str(base), "--blocks", "2"],
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        runs = {name: partial(measure, command) for name, command in commands.items()}
        results = alternate(runs, arguments.rounds, num_warm_up=1)
    seconds = {name: [cost.seconds for cost, _ in costs] for name, costs in results.items()}
    show(f"startup, {arguments.rounds} rounds", facts, [_row(name, seconds) for name in seconds], arguments.json)


if __name__ == "__main__":
    main()
