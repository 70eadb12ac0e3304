"""What each stage of the demo does; each gives back a line that says what came of it.

In: the demo's folder and recipe. Out: every artifact on the way, in that folder. All that needs torch is
here, so that the story can show its plan before torch is imported.
"""

from __future__ import annotations

import dataclasses
import sysconfig
from pathlib import Path

from blockexpand.comparison import compare
from blockexpand.corpus import prepare
from blockexpand.demonstration.instructions import write_instructions
from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.recipe import DemoRecipe
from blockexpand.errors import DemonstrationError
from blockexpand.evaluation.answers import load_tasks
from blockexpand.evaluation.measurement import evaluate
from blockexpand.expansion import verify
from blockexpand.progress import say
from blockexpand.records import write_record
from blockexpand.records.comparison import CompareRecipe, Comparison, PlanRecipe, read_comparison
from blockexpand.records.run import DataSettings, TrainSettings
from blockexpand.reporting import report
from blockexpand.training import train
from blockexpand.units import format_bytes

PROOF_NAME = "proof.json"


class Chapters:
    """The stages from the proof on."""

    def __init__(self, folder: Path, recipe: DemoRecipe, workers: int) -> None:
        """Nothing is made yet."""
        self._folder, self._recipe, self._workers = folder, recipe, workers

    def prove(self) -> str:
        """The whole proof of the expanded checkpoint."""
        proof = verify(BASE, self._folder / "expanded")
        for line in proof.lines:
            say(f"   {line}")
        if not proof.passed:
            raise DemonstrationError(f"{self._folder / 'expanded'} is not the base: see the lines marked FAIL above")
        write_record(self._folder / PROOF_NAME, proof)
        return f"all {len(proof.checks)} checks hold"

    def prepare(self) -> str:
        """Python to learn, English to rehearse and to measure by, instructions."""
        folder, recipe = self._folder, self._recipe
        domain = prepare(recipe.domain, BASE, folder / "domain", overwrite=True)
        (source,) = recipe.general.sources
        source = dataclasses.replace(source, path=sysconfig.get_path("purelib"))
        general = prepare(
            dataclasses.replace(recipe.general, sources=(source,)),
            BASE,
            folder / "general",
            overwrite=True,
        )
        write_instructions(folder / "instructions", recipe.instructions.num_train, recipe.instructions.num_test)
        prepare(recipe.chats(folder / "instructions" / "chats.jsonl"), BASE, folder / "chats", overwrite=True)
        return (
            f"{domain.splits['train'].num_tokens:,} tokens of Python, {general.splits['replay'].num_tokens:,} of "
            f"English to rehearse, {recipe.instructions.num_train:,} instructions"
        )

    def post_pretrain(self) -> str:
        """The first arm of the comparison, and the proof that the base is still inside."""
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
        """Every parameter on conversations."""
        folder, recipe = self._folder, self._recipe
        settings = TrainSettings(
            model=str(self._trained()),
            out=str(folder / "instruct"),
            data=DataSettings(domain=str(folder / "chats"), general=str(folder / "general"), validation_rows=8),
            **recipe.instruct.settings(),
        )
        record = train(settings, resume=True)
        return f"{record.num_steps} steps on {recipe.instructions.num_train:,} conversations"

    def evaluate(self) -> str:
        """Losses and questions, before the instructions and after."""
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
        """The other arms at the same budget; what is run is not run again."""
        result = compare(self._compare_recipe(), self._workers)
        return f"{len(result.trials)} runs of {len(result.arms)} methods"

    def report(self) -> str:
        """The page."""
        folder = self._folder
        parts = ("expanded", "comparison", "answers-before", "answers-after", "domain", "general", "instruct")
        page = report([folder, *(folder / part for part in parts)], folder / "report", overwrite=True)
        return f"{page} ({format_bytes(page.stat().st_size)})"

    def comparison(self) -> Comparison:
        """What the comparison found, so far."""
        return read_comparison(self._folder / "comparison")

    def _compare_recipe(self) -> CompareRecipe:
        folder, recipe = self._folder, self._recipe
        return CompareRecipe(
            base=str(BASE),
            out=str(folder / "comparison"),
            data=DataSettings(
                domain=str(folder / "domain"),
                general=str(folder / "general"),
                validation_rows=recipe.validation_rows,
            ),
            arms=tuple(
                dataclasses.replace(arm, plan=PlanRecipe(blocks=recipe.new_blocks)) if arm.plan else arm
                for arm in recipe.arms
            ),
            domain_tokens=recipe.domain_tokens,
            rows_per_step=recipe.rows_per_step,
            rows_per_pass=recipe.rows_per_step,
            retention=recipe.retention,
            measure_every_steps=recipe.measure_every_steps,
            seeds=recipe.seeds,
        )
