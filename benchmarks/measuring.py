"""What the benchmarks share: child processes with their cost, alternation, medians, tables.

In: commands, or tasks of a benchmark's own file that run in a child process. Out: seconds, CPU seconds and peak
memory of each; medians with the smallest and the largest; a table for people or JSON for machines.

A child's peak memory begins at its parent's (the kernel carries the larger figure over into the new program), so
the process that measures stays small: no benchmark imports numpy or torch outside its tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_KIB = 1024
"""Linux gives ru_maxrss in KiB (getrusage(2))."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process took, its children included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    smallest: float
    largest: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = list(values)
        return cls(median=statistics.median(found), smallest=min(found), largest=max(found), count=len(found))


def ratios(mine: Sequence[float], rivals: Sequence[float]) -> Spread:
    """Mine over the rival's, round by round: below 1 is quicker or smaller, for times and bytes."""
    return Spread.of(a / b for a, b in zip(mine, rivals, strict=True))


# --- running ------------------------------------------------------------------------------------------


def measure(command: Sequence[str]) -> tuple[Cost, str]:
    """Run a command to its end; its cost, and what it wrote on standard output.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as complaints:  # a file, because a pipe that nobody reads fills up
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, env=environment)
        assert process.stdout is not None, "standard output is a pipe"
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        complaints.seek(0)
        complaint = complaints.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed with {process.returncode}:\n{complaint.decode()[-3000:]}")
    cost = Cost(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * _KIB)
    return cost, output.decode()


def task_command(script: str, task: str, **arguments: Any) -> list[str]:
    """The command that runs one of a benchmark's own tasks in a new process."""
    return [sys.executable, script, "--task", task, json.dumps(arguments)]


def run_task(script: str, task: str, **arguments: Any) -> Any:
    """Run a task in a new process and give back what it returned."""
    return json.loads(measure(task_command(script, task, **arguments))[1].splitlines()[-1])


def serve_or(main: Callable[[], None], tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Run the task that the command line asks for, or the benchmark itself."""
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(tasks[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        main()


def alternate(
    rivals: Mapping[str, Callable[[], Result]], num_rounds: int, num_warm_up: int = 0
) -> dict[str, list[Result]]:
    """Each rival once a round, every second round in the reverse order; rounds of warming up are dropped."""
    results: dict[str, list[Result]] = {name: [] for name in rivals}
    names = list(rivals)
    for number in range(-num_warm_up, num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            words = f"round {number + 1} of {num_rounds}" if number >= 0 else "warming up"
            print(f"  {words}: {name}", file=sys.stderr, flush=True)
            result = rivals[name]()
            if number >= 0:
                results[name].append(result)
    return results


# --- memory of this process -----------------------------------------------------------------------------


def peak_bytes() -> int:
    """The largest resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def resident_bytes() -> int:
    """The resident memory this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- reporting ------------------------------------------------------------------------------------------


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the benchmark's docstring as its help, and `--json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("torch", "transformers", "safetensors")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "cpu": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.1f} GiB",
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


Row = dict[str, "str | float | Spread"]


def show(title: str, facts: Mapping[str, str], rows: Sequence[Row], as_json: bool) -> None:
    """Print the result: one row a rival, one column a figure."""
    if as_json:
        plain = [{k: dataclasses.asdict(v) if isinstance(v, Spread) else v for k, v in row.items()} for row in rows]
        print(json.dumps({"benchmark": title, "machine": dict(facts), "rows": plain}, indent=2))
        return
    print(f"\n{title}\n{', '.join(f'{k} {v}' for k, v in facts.items())}\n")
    print(_table(rows))


def _table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, the columns lined up."""
    headers = list(rows[0])
    cells = [headers, *([_text(row[h]) for h in headers] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headers))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)


def _text(cell: str | float | Spread) -> str:
    if isinstance(cell, Spread):
        return f"{_number(cell.median)} ({_number(cell.smallest)} to {_number(cell.largest)})"
    return cell if isinstance(cell, str) else _number(cell)


def _number(value: float) -> str:
    """Three digits, without an exponent unless the value is tiny."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}"
