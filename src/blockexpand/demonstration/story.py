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
from typing import Any

from blockexpand import __version__
from blockexpand.comparison import CompareRecipe, Comparison, PlanRecipe, compare
from blockexpand.corpus import prepare
from blockexpand.demonstration.instructions import write_instructions
from blockexpand.demonstration.recipe import BASE, DemoRecipe, load_demo
from blockexpand.digests import digest_json
from blockexpand.errors import DemonstrationError
from blockexpand.evaluation import evaluate, load_tasks
from blockexpand.expansion import expand, verify
from blockexpand.planning import draw, plan
from blockexpand.progress import say
from blockexpand.records import read_json, write_json, write_record
from blockexpand.reporting import Stage, Stages, comparison_text, report, verdict
from blockexpand.training import sft
from blockexpand.training.settings import DataSettings, TrainSettings

PROOF_NAME = "proof.json"
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
        return tuple(Stage(name=n, seconds=s["seconds"], note=s["note"]) for n, s in self._known.items())


def demo(out: str | Path = "demo-out", *, full: bool = False, workers: int = 1, overwrite: bool = False) -> Story:
    """Plan, expand, prove, prepare, post-pretrain, instruct, evaluate, compare, report.

    Args:
        out: The folder for everything.
        full: Three seeds and a sweep of learning rates.
        workers: Runs at a time, in the comparison.
        overwrite: Start over when `out` holds a finished demo.

    Raises:
        DemonstrationError: `out` holds a finished demo, another one, or somebody else's files.
    """
    recipe = load_demo(full)
    folder = Path(out)
    _claim(folder, recipe, overwrite)
    stages = _Stages(folder)
    chapter = _Chapters(folder, recipe, workers)
    stages.run("Plan: where the new blocks go", folder / "plan.json", chapter.plan)
    stages.run("Expand: write the deeper checkpoint", folder / "expanded", chapter.expand)
    stages.run("Prove that it is still the same model", folder / PROOF_NAME, chapter.prove)
    stages.run("Prepare the corpora and the instructions", folder / "chats", chapter.prepare)
    stages.run("Post-pretrain the new blocks, and nothing else", None, chapter.post_pretrain)
    stages.run("Instruct: teach it to answer", folder / "instruct" / "model", chapter.instruct)
    stages.run("Evaluate before and after the instructions", folder / "answers-after", chapter.evaluate)
    stages.run("The same budget for the other methods", folder / "comparison" / "comparison.json", chapter.compare)
    # The page shows how long everything before it took.
    _save_stages(folder, stages, full)
    stages.run("Report", folder / "report", chapter.report)
    return _finished(folder, stages, chapter.comparison())


class _Chapters:
    """What each stage does; each gives back a line that says what came of it."""

    def __init__(self, folder: Path, recipe: DemoRecipe, workers: int) -> None:
        self._folder, self._recipe, self._workers = folder, recipe, workers

    def plan(self) -> str:
        made = plan(BASE, self._recipe.new_blocks)
        made.save(self._folder / "plan.json")
        for line in draw(made).splitlines():
            say(f"   {line}")
        return f"{made.base.num_blocks} blocks become {made.num_blocks}"

    def expand(self) -> str:
        shutil.rmtree(self._folder / "expanded", ignore_errors=True)
        expand(BASE, self._folder / "expanded", self._folder / "plan.json")
        return f"{self._folder / 'expanded'}: a plain Hugging Face folder"

    def prove(self) -> str:
        proof = verify(BASE, self._folder / "expanded")
        for line in proof.lines:
            say(f"   {line}")
        if not proof.passed:
            raise DemonstrationError(f"{self._folder / 'expanded'} is not the base: see the lines marked FAIL above")
        write_record(self._folder / PROOF_NAME, proof)
        return f"all {len(proof.checks)} checks hold"

    def prepare(self) -> str:
        folder, recipe = self._folder, self._recipe
        domain = prepare(recipe.domain, BASE, folder / "domain", overwrite=True)
        general = prepare(recipe.general, BASE, folder / "general", overwrite=True)
        write_instructions(folder / "instructions", recipe.instructions.num_train, recipe.instructions.num_test)
        prepare(recipe.chats(folder / "instructions" / "chats.jsonl"), BASE, folder / "chats", overwrite=True)
        return (
            f"{domain.splits['train'].num_tokens:,} tokens of Python, {general.splits['replay'].num_tokens:,} of "
            f"English to rehearse, {recipe.instructions.num_train:,} instructions"
        )

    def post_pretrain(self) -> str:
        recipe = self._compare_recipe()
        first = dataclasses.replace(recipe, arms=recipe.arms[:1])
        (arm,) = compare(first, self._workers).arms
        proof = verify(BASE, self._trained(), trained=True)
        if not proof.passed:
            failed = next(line for line in proof.lines if line.startswith("FAIL"))
            raise DemonstrationError(f"the base is not inside {self._trained()} any more: {failed}")
        say("   without its new blocks, the trained model still is the base, bit for bit")
        return (
            f"loss on Python {arm.domain_loss + arm.gain.mean:.3f} -> {arm.domain_loss:.3f}, on English "
            f"{arm.forgetting.mean:+.2%}"
        )

    def _trained(self) -> Path:
        """The post-pretrained model."""
        return self._folder / "comparison" / self.comparison().arms[0].trials[0].run / "model"

    def instruct(self) -> str:
        folder, recipe = self._folder, self._recipe
        settings = TrainSettings(
            model=str(self._trained()),
            out=str(folder / "instruct"),
            data=DataSettings(domain=str(folder / "chats"), general=str(folder / "general"), validation_rows=8),
            **recipe.instruct.settings(),
        )
        record = sft(settings, resume=True)
        return f"{record.num_steps} steps on {recipe.instructions.num_train:,} conversations"

    def evaluate(self) -> str:
        folder = self._folder
        tasks = load_tasks(folder / "instructions" / "tasks.jsonl")
        data = {"domain": folder / "domain", "general": folder / "general"}
        before = evaluate(self._trained(), data, folder / "answers-before", tasks=tasks, overwrite=True)
        after = evaluate(folder / "instruct" / "model", data, folder / "answers-after", tasks=tasks, overwrite=True)
        assert before.answers is not None
        assert after.answers is not None
        return (
            f"{before.answers.right:.0%} -> {after.answers.right:.0%} of {after.answers.num_samples} held-out "
            "questions answered right"
        )

    def compare(self) -> str:
        result = compare(self._compare_recipe(), self._workers)
        return f"{len(result.trials)} runs of {len(result.arms)} methods"

    def report(self) -> str:
        folder = self._folder
        parts = ("expanded", "comparison", "answers-before", "answers-after", "domain", "general", "instruct")
        page = report([folder, *(folder / part for part in parts)], folder / "report", overwrite=True)
        return f"{page} ({page.stat().st_size / 1e3:.0f} kB)"

    def comparison(self) -> Comparison:
        from blockexpand.comparison import read_comparison

        return read_comparison(self._folder / "comparison")

    def _compare_recipe(self) -> CompareRecipe:
        folder, recipe = self._folder, self._recipe
        return CompareRecipe(
            base=str(BASE),
            out=str(folder / "comparison"),
            data=DataSettings(domain=str(folder / "domain"), general=str(folder / "general"), validation_rows=32),
            arms=tuple(
                dataclasses.replace(arm, plan=PlanRecipe(blocks=recipe.new_blocks)) if arm.plan else arm
                for arm in recipe.arms
            ),
            domain_tokens=recipe.domain_tokens,
            retention=recipe.retention,
            measure_every_steps=recipe.measure_every_steps,
            seeds=recipe.seeds,
        )


def _claim(folder: Path, recipe: DemoRecipe, overwrite: bool) -> None:
    """Take the folder for this demo: new, unfinished and of the same recipe, or to be replaced."""
    mark = {"demo": digest_json(recipe), "blockexpand_version": __version__}
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
    page = folder / "report" / "index.html"
    text = f"\n{comparison_text(comparison)}\n\n{verdict(comparison).sentence}\n\nThe report: {page.resolve()}\n"
    seconds = sum(stage.seconds for stage in stages.all())
    return Story(out=str(folder), report=str(page), seconds=seconds, stages=stages.all(), text=text)
