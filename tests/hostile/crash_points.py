"""Outputs written in a child process that dies, or finds the disk full, at one change of files after the other.

What the interpreter opens to write, renames, makes and removes is seen by an audit hook, flushes and copies by
functions in the place of the real ones. No torch: a point takes milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import fuzz_seeds

from blockexpand import staging
from blockexpand.checkpoint.header import build_header
from blockexpand.errors import BlockexpandError
from blockexpand.expansion import expand, plan
from blockexpand.families import known_families
from helpers import tree


def make_base(folder: Path) -> Path:
    """A tiny Llama in two shards with the files that lie beside one, of random finite bytes."""
    llama = known_families()["llama"]
    config = {k: v[:2] if isinstance(v, list) else v for k, v in fuzz_seeds.config_of(llama).items()}
    config["num_hidden_layers"] = 2
    made = fuzz_seeds.checkpoint_of(llama, config)
    names, chance, index = list(made.tensors), random.Random(0), {}
    folder.mkdir(parents=True)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        tensors = [(n, made.tensors[n].dtype, made.tensors[n].shape) for n in part]
        values = b"".join(_finite(made.tensors[n].num_elements, chance) for n in part)
        (folder / file).write_bytes(build_header(tensors, {"format": "pt"}) + values)
        index |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "tokenizer.json").write_bytes(chance.randbytes(5000))
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("beside the model")
    return folder


def _finite(count: int, chance: random.Random) -> bytes:
    """So many bfloat16 numbers about 1."""
    return b"".join(bytes((chance.randrange(256), 0x3F)) for _ in range(count))


Change = tuple[str, str]
"""What is about to be done, and the file or folder that it concerns."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended."""

    changes: list[Change]
    killed: bool
    error: str | None
    """The message of one of our errors, or the traceback of another."""


def run(work: Callable[[], object], place: Path, decide: Callable[[int, str], str | None]) -> Outcome:
    """Do the work in a child; `decide` says of each change in `place` (its number and kind): None, "kill", "half" or
    "fail"."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _work(work, place, decide, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        *changes, last = [json.loads(line) for line in stream.read().splitlines()] or [None]
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return Outcome(changes=[(name, path) for name, path in changes], killed=killed, error=None if killed else last)


def _work(work: Callable[[], object], place: Path, decide: Callable[[int, str], str | None], pipe: int) -> None:
    count, error = 0, None

    def change(name: str, path: str) -> bool:
        """Whether it is to be done by half."""
        nonlocal count
        if not path.startswith(f"{place}/") and path != str(place):
            return False
        os.write(pipe, json.dumps((name, path)).encode() + b"\n")
        act, count = decide(count, name), count + 1
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act == "half"

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and args[2] & _WRITING:
            change("open", args[0])
        elif event == "os.rename":
            change("rename", os.fspath(args[1]))
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            folder = f"/proc/self/fd/{args[-1]}" if args[-1] != -1 else ""
            change(event[3:], os.path.join(os.readlink(folder) if folder else "", os.fspath(args[0])))

    fsync, copy, exchange = os.fsync, os.copy_file_range, staging._exchange

    def flush(handle: int) -> None:
        change("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def copied(source: int, target: int, num_bytes: int, *offsets: int) -> int:
        if change("copy", os.readlink(f"/proc/self/fd/{target}")):
            copy(source, target, num_bytes // 2, *offsets)
            os.kill(os.getpid(), signal.SIGKILL)
        return copy(source, target, num_bytes, *offsets)

    def exchanged(one: Path, two: Path) -> bool:
        change("exchange", str(two))
        return exchange(one, two)

    try:
        sys.addaudithook(hook)
        os.fsync, os.copy_file_range, staging._exchange = flush, copied, exchanged  # type: ignore[assignment]
        work()
    except BlockexpandError as raised:
        error = str(raised)
    except BaseException:
        error = traceback.format_exc()
    os.write(pipe, json.dumps(error).encode() + b"\n")
    os._exit(0)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An output that is written, with what stood there before."""

    place: Path
    """The folder that the output is in; everything in it is looked at."""
    output: str
    older: dict[str, bytes]
    """What was in the place before."""
    work: Callable[[], object]
    """What writes the output."""

    def run(self, decide: Callable[[int, str], str | None] = lambda *_: None) -> Outcome:
        """One run from the beginning."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        for name, data in self.older.items():
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_bytes(data)
        return run(self.work, self.place, decide)

    def visible(self) -> dict[str, bytes]:
        """What somebody finds who does not look for hidden names."""
        return {name: data for name, data in tree(self.place).items() if "/." not in f"/{name}"}


def scenarios(work: Path) -> dict[str, Scenario]:
    """The outputs of `plan` and `expand`, new and over an older one; and one that is written as nobody should."""
    base, place = make_base(work / "base"), work / "place"
    some, more = plan(base, 1), plan(base, 2)
    expand(base, place / "out", some, digest=False)
    older, nested = tree(place), "new/folders/out"

    def over() -> None:
        expand(base, place / "out", more, overwrite=True, digest=False)

    def without_exchange() -> None:
        staging._exchange = lambda *_: False  # type: ignore[assignment]
        over()

    found = {
        "expand": (nested, {}, lambda: expand(base, place / nested, more, digest=False)),
        "overwrite": ("out", older, over),
        "overwrite without exchange": ("out", older, without_exchange),
        "plan": ("plan.json", {}, lambda: more.save(place / "plan.json")),
        "plan over": ("plan.json", {"plan.json": b"{}"}, lambda: more.save(place / "plan.json")),
        "naive": ("out", {}, lambda: shutil.copytree(base, place / "out", dirs_exist_ok=True)),
    }
    return {
        name: Scenario(place=place, output=output, older=before, work=job)
        for name, (output, before, job) in found.items()
    }
