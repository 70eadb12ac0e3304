"""Outputs written under a tracer that ends, refuses or shortens one system call after the other.

`python tests/hostile/crash_points.py [SCENARIO ..] [--all]` prints for each scenario, as JSON, how many points were
tried and what was found at them; `test_crashes.py` asks for that. Without `--all`, a scenario leaves out what another
one has tried on the same calls. No torch: a point takes milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tracer
from durability import complaints
from tracer import Act, Call, Fail, Kill, Outcome, Shorten

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import fuzz_seeds

from blockexpand.checkpoint import streams
from blockexpand.checkpoint.header import build_header
from blockexpand.errors import BlockexpandError
from blockexpand.expansion import expand, plan
from blockexpand.families import known_families
from blockexpand.records.plan import Plan


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


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes, and the empty folders."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found | {
        str(p.relative_to(folder)) + "/": b"" for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())
    }


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An output that is written, with what stood there before."""

    place: Path
    """The folder that the output is in; everything in it is looked at."""
    output: str
    """The output's name there."""
    older: dict[str, bytes]
    """What was in the place before."""
    work: Callable[[], object]
    """What writes the output."""
    without_exchange: bool = False
    """Whether the file system is one that cannot exchange two names in one step."""
    in_threads: bool = False
    """Whether several threads write."""

    def reset(self) -> None:
        """The place as it was before."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        for name, data in self.older.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def run(self, decide: Callable[[int, Call], Act]) -> Outcome:
        """One run from the beginning."""
        self.reset()
        number = 0

        def decide_or_refuse(_: int, call: Call) -> Act:
            nonlocal number
            if self.without_exchange and call.name == "exchange":
                return Fail(number=errno.EINVAL)
            number += 1
            return decide(number - 1, call)

        return tracer.run(self.work, self.place, decide_or_refuse)

    def visible(self) -> dict[str, bytes]:
        """The files that somebody finds in the place who does not look for hidden names."""
        return {
            name: data for name, data in tree(self.place).items() if not name.endswith("/") and "/." not in f"/{name}"
        }


class Sweep:
    """One scenario at every point."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        whole = scenario.run(lambda _, __: None)
        assert (whole.error, whole.crash, whole.killed) == (None, None, False), whole
        self.calls = [c for c in whole.calls if not (scenario.without_exchange and c.name == "exchange")]
        self.newer = tree(scenario.place)
        assert self.newer != scenario.older
        assert not any(name.startswith(".") for name in self.newer), (
            "a run that was not disturbed leaves nothing hidden"
        )
        self.found: Counter[str] = Counter()
        output = str(scenario.place / scenario.output)
        place = str(scenario.place)
        self.unsynced = complaints(whole.calls, output, place)
        self.needed = sorted(
            _plainly(path)
            for path in {call.paths[0] for call in whole.calls if call.name == "fsync"}
            if complaints([c for c in whole.calls if c.name != "fsync" or c.paths[0] != path], output, place)
        )
        swaps = [n for n, call in enumerate(self.calls) if call.name.startswith(("rename", "exchange"))]
        self.swap = max(swaps, default=1) - 1

    def kills(self, first: int = 0) -> None:
        """The process dies before each call, and in the middle of each one that writes."""
        for number, call in enumerate(self.calls[first:], start=first):
            self._killed(number, Kill())
            if not self.scenario.in_threads and call.name in tracer.COUNT and call.num_bytes > 1:
                self._killed(number, Kill(after_bytes=call.num_bytes // 2))

    def _killed(self, number: int, how: Kill) -> None:
        outcome = self.scenario.run(lambda n, _: how if n == number else None)
        assert outcome.killed, f"point {number} was not reached: {outcome}"
        self.found["kills"] += 1
        seen = self.scenario.visible()
        if seen == self.scenario.older:
            self.found["older or nothing"] += 1
        elif seen == self.newer:
            self.found["newer"] += 1
        elif not seen and self.scenario.without_exchange:
            self.found["set aside"] += 1
        else:
            raise AssertionError(f"killed at {number} {self.calls[number]}: {sorted(seen)}")
        self._again(seen)

    def _again(self, seen: dict[str, bytes]) -> None:
        """The next run to the same place: it ends whole, or says that there is a whole one; nothing hidden stays."""
        try:
            self.scenario.work()
        except BlockexpandError as error:
            if "already exists" not in str(error):
                raise
            if seen == {}:
                assert tree(self.scenario.place) == self.scenario.older, "the older output was not put back"
            else:
                assert seen == self.newer
        else:
            assert self.scenario.visible() == self.newer
        if "/" in next(iter(self.newer)):  # a folder
            assert self.scenario.visible() == tree(self.scenario.place), "something hidden stayed"
            self.found["tidied"] += 1

    def chosen(self, thorough: bool, first: int = 0) -> list[tuple[int, Call]]:
        """The calls from the first on, of the many copies only every sixth unless it is to be thorough."""
        return [
            (number, call)
            for number, call in enumerate(self.calls)
            if number >= first and (thorough or call.name != "copy_file_range" or number % 6 == 0)
        ]

    def failures(self, thorough: bool, first: int = 0) -> None:
        """Each call says that the disk is full."""
        for number, call in self.chosen(thorough, first):
            outcome = self.scenario.run(lambda n, _, at=number: Fail(number=errno.ENOSPC) if n == at else None)
            self.found["failed calls"] += 1
            self._undone_or_done(outcome, f"{number} {call}")

    def budgets(self, thorough: bool) -> None:
        """The disk is full after so many bytes: at, before and after the end of every write, and inside it."""
        ends, total, chosen = {0}, 0, dict(self.chosen(thorough))
        for number, call in enumerate(self.calls):
            if call.name in tracer.COUNT:
                if number in chosen:
                    ends |= {total + 1, total + call.num_bytes // 2, total + call.num_bytes - 1, total + call.num_bytes}
                total += call.num_bytes
        for budget in sorted(b for b in ends if b < total):
            outcome = self.scenario.run(_budget(budget))
            assert outcome.error is not None, f"with {budget} of {total} bytes: {outcome}"
            self.found["budgets"] += 1
            self._undone_or_done(outcome, f"{budget} of {total} bytes")
        assert self.scenario.run(_budget(total)).error is None

    def _undone_or_done(self, outcome: Outcome, where: str) -> None:
        assert outcome.crash is None, f"{where}: {outcome.crash}"
        assert not outcome.killed
        if outcome.error is None:
            # Only cleaning up may fail without a word: what is left then, the next run removes.
            assert self.scenario.visible() == self.newer, where
        elif "was written whole" in outcome.error:
            # A file that has its name, though not for sure; inside a folder that is then given up, it goes with it.
            assert "No space left on device" in outcome.error
            assert tree(self.scenario.place) == (self.scenario.older if "partial" in outcome.error else self.newer), (
                where
            )
        else:
            assert "no space left" in outcome.error, outcome.error
            assert "Nothing was left behind" in outcome.error
            assert tree(self.scenario.place) == self.scenario.older, where

    def short_writes(self, thorough: bool) -> None:
        """Each write once does half of what it was asked for, as the system may; the rest has to follow."""
        for number, call in self.chosen(thorough):
            if call.name in tracer.COUNT and call.num_bytes > 1:
                half = Shorten(num_bytes=call.num_bytes // 2)
                outcome = self.scenario.run(lambda n, _, at=number, act=half: act if n == at else None)
                assert (outcome.error, outcome.crash) == (None, None), outcome
                assert tree(self.scenario.place) == self.newer, f"{number} {call} was cut short, and the rest is lost"
                self.found["short writes"] += 1


def _plainly(path: str) -> str:
    """The last part of a path, a hidden name as what it stands for."""
    return re.sub(r"^\.(.*)\.partial-.*", r"\1 (hidden)", os.path.basename(path))


def _budget(num_bytes: int) -> Callable[[int, Call], Act]:
    left = num_bytes

    def decide(_: int, call: Call) -> Act:
        nonlocal left
        if call.name not in tracer.COUNT or call.num_bytes == 0:
            return None
        if left == 0:
            return Fail(number=errno.ENOSPC)
        written, left = min(left, call.num_bytes), max(0, left - call.num_bytes)
        return None if written == call.num_bytes else Shorten(num_bytes=written)

    return decide


def scenarios(work: Path) -> Iterator[tuple[str, Scenario]]:
    """Every output of `plan` and `expand`, new and over an older one; and one that is written as nobody should."""
    base, place, alone = make_base(work / "base"), work / "place", streams._ALONE_BYTES
    some, more = plan(base, 1), plan(base, 2)
    expand(base, place / "out", some, digest=False)
    nested = "new/folders/out"
    older = tree(place)

    def expanding(made: Plan, name: str, overwrite: bool) -> Callable[[], object]:
        return lambda: expand(base, place / name, made, overwrite=overwrite, digest=False)

    def saving() -> None:
        more.save(place / "plan.json")

    yield "expand", Scenario(place=place, output=nested, older={}, work=expanding(more, nested, False))
    over = expanding(more, "out", True)
    yield "overwrite", Scenario(place=place, output="out", older=older, work=over)
    yield (
        "overwrite without exchange",
        Scenario(place=place, output="out", older=older, work=over, without_exchange=True),
    )

    def in_threads() -> None:
        streams._ALONE_BYTES = 0  # however little there is to copy
        over()

    yield "overwrite in threads", Scenario(place=place, output="out", older=older, work=in_threads, in_threads=True)
    streams._ALONE_BYTES = alone
    yield "plan", Scenario(place=place, output="plan.json", older={}, work=saving)
    yield "plan over", Scenario(place=place, output="plan.json", older={"plan.json": b"{}"}, work=saving)

    def naively() -> None:
        shutil.copytree(base, place / "out", dirs_exist_ok=True)

    yield "naive", Scenario(place=place, output="out", older={}, work=naively)


def main() -> None:
    """Sweep the scenarios named, or all that are ours."""
    asked = [word for word in sys.argv[1:] if word != "--all"]
    thorough = "--all" in sys.argv
    work = Path(tempfile.mkdtemp(prefix="crash-points-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    report = {}
    try:
        for name, scenario in scenarios(work):
            if name not in asked if asked else name == "naive":
                continue
            sweep = Sweep(scenario)
            over = name.startswith("overwrite") and not thorough
            sweep.kills(sweep.swap if over and scenario.without_exchange else 0)
            sweep.failures(thorough, sweep.swap if over else 0)
            # Which thread makes a call is not the same each time, so no call is cut short in its middle there.
            if not over and not scenario.in_threads:
                sweep.budgets(thorough)
                sweep.short_writes(thorough)
            report[name] = {
                **sweep.found,
                "calls": [call.name for call in sweep.calls],
                "unsynced": sweep.unsynced,
                "needed": sweep.needed,
            }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
