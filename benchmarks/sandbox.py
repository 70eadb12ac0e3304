"""What does the sandbox add to a program, alone and with two at a time?

Compared: the wall time of a small program as `python program.py` (what runs code without a sandbox: a new interpreter),
as `python -I -S` (the least that a new interpreter costs), in the sandbox, and judged against one test; each alone, and
two at a time from two threads. Beside it the processor time of each, children included. Rounds alternate.

Goal: under 60 ms more a sample than the plain subprocess, two at a time on two cores.

    .venv/bin/python benchmarks/sandbox.py [--rounds 20] [--samples 6] [--json]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from blockexpand.sandbox import passes, run_program
from measuring import Row, Spread, alternate, machine, parser_of, show

_GOAL_MS = 60.0
_PROGRAM = "def f(x):\n    return x + 1\nprint(f(1))\n"


def _plain(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == b"2\n"


def _sandboxed() -> None:
    assert run_program(_PROGRAM).status == "ok"


def _judged() -> None:
    assert passes(_PROGRAM, "assert f(1) == 2\n").status == "ok"


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _milliseconds(run: Callable[[], None], width: int, samples: int) -> tuple[float, float]:
    """Of one sample, as each of the `width` threads sees it; and the processor time of one, in children."""
    begun, used = time.perf_counter(), _cpu_seconds()
    with ThreadPoolExecutor(width) as pool:
        for future in [pool.submit(run) for _ in range(samples * width)]:
            future.result()
    wall = 1000 * (time.perf_counter() - begun) / samples
    return wall, 1000 * (_cpu_seconds() - used) / (samples * width)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=6, help="samples a thread in each round")
    arguments = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-sandbox-") as work:
        program = Path(work) / "program.py"
        program.write_text(_PROGRAM, encoding="utf-8")
        python = os.path.realpath(sys.executable)
        ways = {
            "python program.py": partial(_plain, [python, str(program)]),
            "python -I -S program.py": partial(_plain, [python, "-I", "-S", str(program)]),
            "run_program": _sandboxed,
            "passes": _judged,
        }
        runs = {
            f"{name}, {width} at a time": partial(_milliseconds, run, width, arguments.samples)
            for width in (1, 2)
            for name, run in ways.items()
        }
        results = alternate(runs, arguments.rounds, num_warm_up=1)
    walls = {name: [wall for wall, _ in found] for name, found in results.items()}
    rows: list[Row] = []
    for name, times in walls.items():
        width = name.partition(", ")[2]
        floors = (f"python program.py, {width}", f"python -I -S program.py, {width}")
        added, least = (Spread.of(a - b for a, b in zip(times, walls[f], strict=True)) for f in floors)
        ours = "python" not in name
        verdict = ("met" if least.median < _GOAL_MS else "MISSED") if ours else ""
        cpu = Spread.of(cpu for _, cpu in results[name])
        rows.append(
            {
                "what": name,
                "ms": Spread.of(times),
                "CPU ms": cpu,
                "more than python": added,
                "more than -I -S": least,
                "goal": verdict,
            }
        )
    show(f"sandbox, {arguments.rounds} rounds of {arguments.samples}", facts, rows, arguments.json)


if __name__ == "__main__":
    main()
