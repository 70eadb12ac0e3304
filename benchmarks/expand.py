"""What does expanding cost beside copying the bytes, and beside load-rename-save?

A random bf16 Llama checkpoint in shards is written first (1.1b: 22 blocks of hidden size 2048 as TinyLlama's, and
2 new; 7b: 32 blocks of 4096 as Llama 2's, and 8 new). Compared, each a process of its own:

- `blockexpand expand`, which also hashes every tensor of the base, and `expand --no-digest`, which does not;
- `cp -r` of the expanded folder: the same bytes and nothing else. GNU cp 9.1 moves them with copy_file_range and leaves
  the holes that ours has for zeros as holes; `cp -r --sparse=never` writes every byte of the output;
- load-rename-save, the procedure of LLaMA-Factory's expansion script, redone here by its steps: transformers loads
  the whole model; each tensor gets its new name, each new block a copy of the one below with its two output
  projections zero; safetensors saves all in shards of at most 5 GB, with index and config. (No tokenizer is there
  to be copied by anyone.)
- mergekit itself (`--mergekit PATH` of its mergekit-yaml, in an environment of its own; left out where there is none):
  passthrough slices, a slice of one block for each new one with its two output projections scaled by 0;
- load-deepcopy-pickle, the procedure of TencentARC's script for LLaMA Pro, redone by its steps: the model in float16,
  a second dictionary with deep copies, one torch.save. It writes other bytes (float16, a pickle), so it is no judge of
  speed at the same job.

What load-rename-save and mergekit wrote is compared with ours, byte by byte, in the first round; mergekit's zeros are
partly -0.0, which counts as the same.

Measured: seconds until every byte is on the disk (each file and folder of the output is fsynced inside the timed
span, whoever wrote it), CPU seconds, peak memory of the process. The base is in the page cache as far as memory
allows, unless `--cold` drops it before each run. Rounds alternate. `--lock FILE` holds a lock while a rival runs that
takes the whole model into memory; waiting for it is not timed.

    .venv/bin/python benchmarks/expand.py [--shape 1.1b|7b] [--rounds 5] [--cold] [--mergekit PATH] [--without NAME ..]
        [--work FOLDER] [--lock FILE] [--json]
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from bases import SHAPES, LlamaShape, write_llama
from measuring import (
    Cost,
    Row,
    Spread,
    alternate,
    machine,
    measure,
    parser_of,
    ratios,
    run_task,
    serve_or,
    show,
    task_command,
)
from rivals import load_deepcopy_pickle, load_rename_save, mergekit_slices


def _write_base(folder: str, shape: str) -> None:
    write_llama(Path(folder), SHAPES[shape])


def _same_tensors(one: str, other: str) -> bool:
    """Whether two checkpoints hold the same tensors byte for byte; -0.0, of which mergekit makes some, is zero."""
    from safetensors import safe_open

    from blockexpand.checkpoint import digest_tensors, open_checkpoint

    ours, theirs = open_checkpoint(one), open_checkpoint(other)
    expected, found = digest_tensors(ours), digest_tensors(theirs)
    if set(expected) != set(found):
        return False
    for name in (name for name in expected if expected[name].digest != found[name].digest):
        with safe_open(theirs.folder / theirs.tensors[name].file, framework="pt") as stream:
            if not expected[name].all_zero or stream.get_tensor(name).any():
                return False
    return True


_SAME = ("load-rename-save", "mergekit")
"""The rivals that write the same tensors."""
_IN_MEMORY = (*_SAME, "load-deepcopy-pickle")
"""The rivals that hold the model in memory."""


# --- measuring --------------------------------------------------------------------------------------------


def _flush(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _locked(path: str | None) -> Generator[None]:
    if path is None:
        yield
        return
    with open(path, "a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclasses.dataclass
class _Course:
    """The folders of one benchmark, and the runs in them."""

    base: Path
    reference: Path
    """What ours makes of the base: what `cp` copies, and what load-rename-save has to make too."""
    out: Path
    shape: LlamaShape
    cold: bool
    mergekit: str | None
    without: tuple[str, ...]
    lock: str | None
    compared: set[str] = dataclasses.field(default_factory=set)

    def commands(self) -> dict[str, list[str]]:
        """Every rival's command; each writes `out`."""
        ours = [
            str(Path(sys.executable).with_name("blockexpand")), "expand", str(self.base), str(self.out),
            "--blocks", str(self.shape.num_new), "--quiet",
        ]  # fmt: skip
        theirs = {"base": str(self.base), "out": str(self.out), "num_new": self.shape.num_new}
        commands = {
            "expand": ours,
            "expand --no-digest": [*ours, "--no-digest"],
            "cp -r": ["cp", "-r", str(self.reference), str(self.out)],
            "cp -r --sparse=never": ["cp", "-r", "--sparse=never", str(self.reference), str(self.out)],
            "load-rename-save": task_command(__file__, "load-rename-save", **theirs),
            "load-deepcopy-pickle": task_command(__file__, "load-deepcopy-pickle", **theirs),
        }
        if self.mergekit is not None:
            slices = self.base.with_name("slices.yaml")
            slices.write_text(mergekit_slices(self.base, self.shape), encoding="utf-8")
            commands["mergekit"] = [self.mergekit, str(slices), str(self.out), "--no-copy-tokenizer"]
        return {name: command for name, command in commands.items() if name not in self.without}

    def run(self, name: str) -> Cost:
        """One rival's run, from a quiet disk until its output is durable; then the output goes."""
        with _locked(self.lock if name in _IN_MEMORY else None):
            return self._run(name)

    def _run(self, name: str) -> Cost:
        os.sync()
        if self.cold:
            for folder in (self.base, self.reference):
                _forget(folder)
        start = time.perf_counter()
        cost, _ = measure(self.commands()[name])
        cpu_seconds = _cpu_seconds()
        _flush(self.out)
        cost = dataclasses.replace(
            cost,
            seconds=time.perf_counter() - start,
            cpu_seconds=cost.cpu_seconds + _cpu_seconds() - cpu_seconds,
        )
        if name in _SAME and name not in self.compared:
            if not run_task(__file__, "same", one=str(self.reference), other=str(self.out)):
                sys.exit(f"{name} made other tensors than blockexpand expand: the comparison is void")
            self.compared.add(name)
        shutil.rmtree(self.out)
        return cost


def _rows(costs: dict[str, list[Cost]]) -> list[Row]:
    seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
    return [
        {
            "who": name,
            "seconds, durable": Spread.of(seconds[name]),
            "times cp": ratios(seconds[name], seconds["cp -r"]),
            **{f"times {rival}": ratios(seconds[name], seconds[rival]) for rival in _SAME if rival in seconds},
            "CPU seconds": Spread.of(cost.cpu_seconds for cost in found),
            "peak MB": Spread.of(cost.peak_bytes / 1e6 for cost in found),
        }
        for name, found in costs.items()
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--mergekit", help="path of mergekit-yaml, in an environment of its own")
    parser.add_argument("--without", nargs="+", default=(), help="leave these out, e.g. load-deepcopy-pickle")
    parser.add_argument("--lock", help="a file to lock while a rival holds the model in memory")
    parser.add_argument("--work", help="where the temporary folder is made")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-expand-", dir=arguments.work) as work:
        # The base, the reference and one output stand side by side.
        needed, free = shape.base_bytes + 2 * shape.expanded_bytes, shutil.disk_usage(work).free
        if needed * 1.05 > free:
            sys.exit(
                f"expand.py --shape {arguments.shape} writes {needed / 1e9:.1f} GB and {work} has {free / 1e9:.1f} GB "
                "free; free some space, or name another folder with --work"
            )
        course = _Course(
            base=Path(work) / "base", reference=Path(work) / "reference", out=Path(work) / "out", shape=shape,
            cold=arguments.cold, mergekit=arguments.mergekit, without=tuple(arguments.without), lock=arguments.lock,
        )  # fmt: skip
        print(f"  writing a base of {shape.base_bytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
        run_task(__file__, "write-base", folder=str(course.base), shape=arguments.shape)
        measure([str(course.reference) if part == str(course.out) else part for part in course.commands()["expand"]])
        runs = {name: partial(course.run, name) for name in course.commands()}
        costs = alternate(runs, arguments.rounds)
    what = f"{shape.num_blocks} + {shape.num_new} blocks, {shape.expanded_bytes / 1e9:.2f} GB out"
    title = f"expand, {what}, {arguments.rounds} rounds, {'cold' if arguments.cold else 'warm'} cache"
    show(title, facts, _rows(costs), arguments.json)


if __name__ == "__main__":
    serve_or(
        main,
        {
            "write-base": _write_base,
            "load-rename-save": load_rename_save,
            "load-deepcopy-pickle": load_deepcopy_pickle,
            "same": _same_tensors,
        },
    )
