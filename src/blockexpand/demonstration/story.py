"""`demo`: the whole job on the tiny base, from the plan to the report.

In: nothing but what is installed. Out: a folder with every artifact on the way, `stages.json`, and the
report. A demo that was interrupted goes on where it stopped; a finished one is only replaced when asked.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand import __version__
from blockexpand.demonstration.paths import BASE, RECIPE
from blockexpand.digests import digest_file
from blockexpand.errors import DemonstrationError
from blockexpand.expansion import draw, expand, plan
from blockexpand.progress import say
from blockexpand.records import read_json, read_yaml, write_json
from blockexpand.staging import RECORD_NAME

if TYPE_CHECKING:
    from blockexpand.records.comparison import Comparison
    from blockexpand.reporting import Stage

_MARK = "demo.json"
"""Which demo a folder holds, written first: what tells an unfinished demo from somebody's folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """A finished demo."""

    out: str
    report: str
    seconds: float
    stages: tuple[Stage, ...]
    text: str
    """The summary as the terminal shows it."""


class _Stages:
    """Runs the stages in turn, tells of each, and remembers how long it took, over interruptions too."""

    def __init__(self, out: Path) -> None:
        self._number = 0
        self._path = out / "stage-times.json"
        self._known: dict[str, dict[str, Any]] = read_json(self._path) if self._path.exists() else {}

    def run(self, name: str, done: Path | None, work: Callable[[], str]) -> None:
        """Do a stage whose result is `done`, unless it is there already."""
        self._number += 1
        say(f"\n{self._number}. {name}")
        if name in self._known and (done is None or done.exists()):
            say(f"   done before: {self._known[name]['note']}")
            return
        start = time.monotonic()
        note = work()
        self._known[name] = {"seconds": round(time.monotonic() - start, 2), "note": note}
        write_json(self._path, self._known)
        say(f"   {note}  ({self._known[name]['seconds']:.1f} s)")

    def all(self) -> tuple[Stage, ...]:
        from blockexpand.reporting import Stage

        return tuple(Stage(name=n, seconds=s["seconds"], note=s["note"]) for n, s in self._known.items())


def demo(out: str | Path = "demo-out", *, full: bool = False, workers: int = 1, overwrite: bool = False) -> Story:
    """Plan, expand, prove, prepare, post-pretrain, instruct, evaluate, compare, report.

    Args:
        out: The folder for everything.
        full: Three seeds and three learning rates for each method.
        workers: Runs at a time, in the comparison.
        overwrite: Start over when `out` holds a finished demo.

    Raises:
        DemonstrationError: `out` holds a finished demo, another one, or somebody else's files.
    """
    folder = Path(out)
    _claim(folder, full, overwrite)
    stages = _Stages(folder)
    stages.run("Plan: where the new blocks go", folder / "plan.json", lambda: _plan(folder))
    stages.run("Expand: write the deeper checkpoint", folder / "expanded", lambda: _expand(folder))

    # Here, so that a person sees the plan at once: torch and transformers take seconds.
    from blockexpand.demonstration.chapters import PROOF_NAME, Chapters
    from blockexpand.demonstration.recipe import load_demo

    chapter = Chapters(folder, load_demo(full), workers)
    stages.run("Prove that it is still the same model", folder / PROOF_NAME, chapter.prove)
    stages.run("Prepare the corpora and the instructions", folder / "chats" / RECORD_NAME, chapter.prepare)
    stages.run("Post-pretrain the new blocks, and nothing else", None, chapter.post_pretrain)
    stages.run("Instruct: teach it to answer", folder / "instruct" / RECORD_NAME, chapter.instruct)
    stages.run("Evaluate before and after the instructions", folder / "answers-after", chapter.evaluate)
    stages.run("The same budget for the other methods", folder / "comparison" / "comparison.json", chapter.compare)
    # The page shows how long everything before it took.
    _save_stages(folder, stages, full)
    stages.run("Report", folder / "report", chapter.report)
    return _finished(folder, stages, chapter.comparison())


def _plan(folder: Path) -> str:
    made = plan(BASE, read_yaml(RECIPE)["new_blocks"])
    made.save(folder / "plan.json")
    for line in draw(made).splitlines():
        say(f"   {line}")
    return f"{made.base.num_blocks} blocks become {made.num_blocks}"


def _expand(folder: Path) -> str:
    expand(BASE, folder / "expanded", folder / "plan.json", overwrite=True)
    return f"{folder / 'expanded'}: a plain Hugging Face folder"


def _claim(folder: Path, full: bool, overwrite: bool) -> None:
    """Take the folder for this demo: new, unfinished and of the same recipe and length, or to be replaced."""
    mark = {"demo": digest_file(RECIPE), "full": full, "blockexpand_version": __version__}
    if (folder / _MARK).is_file():
        finished = (folder / "report" / "index.html").exists()
        same = read_json(folder / _MARK) == mark
        if finished and not overwrite:
            raise DemonstrationError(
                f"{folder} holds a finished demo: open {folder / 'report' / 'index.html'}, or add --overwrite to make "
                "it again"
            )
        if not finished and not same and not overwrite:
            raise DemonstrationError(
                f"{folder} holds an unfinished demo of other settings; add --overwrite to start over, or choose "
                "another --out"
            )
        if finished or not same:
            shutil.rmtree(folder)
        else:
            say(f"Going on with the demo in {folder}")
    elif folder.exists() and any(folder.iterdir()):
        raise DemonstrationError(f"{folder} exists and is no demo's folder; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _MARK, mark)


def _save_stages(folder: Path, stages: _Stages, full: bool) -> None:
    import torch
    import transformers

    from blockexpand.reporting import Stages

    Stages(
        title="blockexpand demo" + (" (three seeds)" if full else ""),
        date=time.strftime("%Y-%m-%d"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        versions={
            "blockexpand": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        stages=stages.all(),
    ).save(folder)


def _finished(folder: Path, stages: _Stages, comparison: Comparison) -> Story:
    from blockexpand.reporting import comparison_text, verdict

    page = folder / "report" / "index.html"
    text = f"\n{comparison_text(comparison)}\n\n{verdict(comparison).sentence}\n\nThe report: {page.resolve()}\n"
    seconds = sum(stage.seconds for stage in stages.all())
    return Story(out=str(folder), report=str(page), seconds=seconds, stages=stages.all(), text=text)
