"""`learn`: from a model and data to a model that knows the data and has kept the rest, as one story.

In: a model (all that MODEL may be), data, and what may be lost. Out: a run's folder with the model, and in it its new
blocks as a pack, a page, the recipe it amounts to, and `learn.json`, written last. It looks, decides, reads, grows,
trains, judges and tells, each by what the other verbs use. All that can be refused is refused before anything heavy;
what is decided is kept, so that a run that was stopped goes on with the same command and ends with the same bytes.
Torch is imported where something is computed: a refusal takes no seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockexpand import __version__
from blockexpand.checkpoint import Checkpoint, open_checkpoint, tokenizer_file
from blockexpand.corpus import SplitRecipe, digest_sources, look_at_sources, make_recipe, open_corpus, prepare
from blockexpand.corpus.chats import check_template
from blockexpand.corpus.splits import LEAST_DOCUMENTS
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import LearnError, UsageError
from blockexpand.expansion import expand, survey, verify
from blockexpand.expansion import plan as make_plan
from blockexpand.progress import say
from blockexpand.records import read_record, write_record
from blockexpand.records.learn import (
    ALL_TEXT,
    Arm,
    DataSeen,
    LearnPlan,
    LearnRecord,
    LearnSettings,
    Learnt,
    Said,
    parse_keep,
    say_plan,
    write_recipe,
)
from blockexpand.records.run import RunRecord, TrainSettings
from blockexpand.staging import RECORD_NAME, check_output

_RECORD = "learn.json"
_HELD_OUT = 0.1
"""Of the documents, to steer by, and as many to test on."""
_ENOUGH_GENERAL, _MOST_HELD_OUT = 160, 0.7
"""Documents of general text to steer and to test the budget by, and the largest share of them."""
_PROMPTS = 3
"""That both models continue, for people to read."""
_PIECES = 64
"""Documents at least that a held-out split of full size has: a bound stands on documents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was looked at before anything was decided."""

    base: Checkpoint
    depth: int
    data: DataSeen
    general: DataSeen
    """The user's; without any document where the model is to write it itself."""


def learn(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    keep: float | str = 0.01,
    general: str | Path | Sequence[str | Path] | None = None,
    minutes: float | None = None,
    tokens: int | None = None,
    blocks: int | None = None,
    arm: Arm = "blocks",
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    against: Sequence[Arm] = (),
    dry_run: bool = False,
) -> LearnRecord:
    """Teach a model data of one's own, and keep what it knew.

    Args:
        model: A model folder, a run, a GGUF file, or a hub id.
        data: Files, folders, globs or data sets of the hub: texts, code, tables or chats; `reviews.csv:body` names a
            table's column.
        keep: How much general loss may rise: 0.01, "1%", or for each kind of general text "prose=0.5%,chats=1%".
        general: Text like what the model knew, as `data`; without it the model writes it itself.
        minutes: How long it may take here; without it and `tokens`, a few times through the data.
        tokens: Instead, how many tokens of the data it learns from.
        blocks: How many new blocks; by a rule if not given.
        arm: What trains: new blocks, everything, or LoRA.
        seed: Of what is drawn.
        out: The folder to write; named after the model if not given.
        device: Where it runs: cpu, cuda, ...; what there is if not given.
        against: Arms that the same tokens are spent on besides, each with the same retention.
        dry_run: Say what would be done, and stop.

    Returns:
        What `learn.json` holds.

    Raises:
        LearnError, UsageError, RecordError: it cannot be done as asked, or the output was made by other settings.
        CheckpointError, FamilyError, PlanError: the model cannot be used.
        CorpusError: the data cannot be read.
        DeviceError, TrainingError: it does not fit here.
        KeyboardInterrupt: a signal came; what was done is kept.
    """
    asked = {
        "minutes": minutes,
        "tokens": tokens,
        "blocks": blocks,
        "arm": arm,
        "seed": seed,
        "against": tuple(against),
    }
    settings, seen = _look(str(model), _listed(data), _listed(general or ()), keep=parse_keep(keep), **asked)
    folder = Path(out) if out is not None else Path(f"{seen.base.folder.resolve().name}-learnt")
    work = _Work(folder, settings, seen, device or "auto")
    if (finished := work.finished()) is not None:
        return finished
    plan = work.decide()
    say("\n".join(say_plan(plan, settings, folder)))
    if dry_run:
        return LearnRecord(blockexpand_version=__version__, out=str(folder), settings=settings, plan=plan, learnt=None)
    try:
        return work.do(plan)
    except KeyboardInterrupt as stopped:  # at any moment; `Interrupted` while it trains
        raise type(stopped)(f"{folder} is not finished, and kept: the same command goes on with it") from stopped


def _listed(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(str(one) for one in given)


def _look(model: str, data: tuple[str, ...], general: tuple[str, ...], **asked: Any) -> tuple[LearnSettings, _Seen]:
    """The model by its headers, the data by its first records; refused is what cannot do."""
    base = open_checkpoint(model)
    depth = survey(base).depth
    weights = {name: digest_file(base.folder / name) for name in (*base.shards, tokenizer_file(base.folder).name)}
    settings = LearnSettings(
        model=model,
        model_digest=digest_json(weights),
        data=data,
        data_digest=digest_sources(data),
        general=general,
        general_digest=digest_sources(general),
        **asked,
    )
    kinds = (ALL_TEXT,) if general else ("prose", "chats")
    for kind in settings.keep.keys() - {ALL_TEXT, *kinds}:
        raise UsageError(f"--keep names {kind!r} text; expected {', '.join(kinds)}, or a budget without a name")
    found = look_at_sources(data)
    if found.num_documents < LEAST_DOCUMENTS:
        raise LearnError(
            f"{', '.join(data)}: {found.num_documents} documents; expected at least {LEAST_DOCUMENTS}, to "
            "learn from, to steer by and to test on; give more"
        )
    if found.kind == "chats":
        check_template(load_tokenizer(base.folder))
    return settings, _Seen(base=base, depth=depth, data=found, general=look_at_sources(general))


class _Work:
    """One output: what is in its folder, and what is still to be done. What is in work/ is made once and kept."""

    def __init__(self, out: Path, asked: LearnSettings, seen: _Seen, device: str) -> None:
        self.out, self.asked, self.seen, self.device = out, asked, seen, device
        self.folder = out / "work"
        self.data, self.general = self.folder / "domain", self.folder / "general"

    def finished(self) -> LearnRecord | None:
        """The record of an output that is whole.

        Raises:
            LearnError, StagingError: the folder is another's.
        """
        begun = self.folder / "settings.json"
        if not begun.is_file():
            check_output(self.out)
            return None
        difference = read_record(LearnSettings, begun).difference(self.asked)
        if difference:
            raise LearnError(
                f"{self.out} was begun with other settings: {difference}; expected the same; choose another --out, or "
                "remove the folder"
            )
        path = self.out / _RECORD
        return read_record(LearnRecord, path) if path.is_file() else None

    def decide(self) -> LearnPlan:
        """The plan that was kept, or a new one."""
        path = self.folder / "plan.json"
        if path.is_file():
            return read_record(LearnPlan, path)
        from blockexpand.training.choices import decide

        seen = self.seen
        return decide(self.asked, seen.base, seen.depth, seen.data, seen.general, self.device, self.out)

    def do(self, plan: LearnPlan) -> LearnRecord:
        """Everything that is not there yet, in its order."""
        from blockexpand.training import train

        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self.folder / "settings.json", self.asked)
        write_record(self.folder / "plan.json", plan)
        self.read(plan)
        self.grow(plan)
        arms = (self.asked.arm, *self.asked.against)
        runs = {arm: train(self.recipe(plan, arm), resume=True, device=self.device) for arm in arms}
        learnt = self.judge(runs)
        record = LearnRecord(
            blockexpand_version=__version__,
            out=str(self.out),
            settings=self.asked,
            plan=plan,
            learnt=learnt[self.asked.arm],
            rivals=tuple(learnt[arm] for arm in self.asked.against),
            said=self.ask(),
        )
        self.leave(plan, record)
        return record

    def read(self, plan: LearnPlan) -> None:
        """The data as rows of tokens, to learn from, to steer by, to test on; and the user's general text."""
        held_out = SplitRecipe(
            share=_HELD_OUT, max_tokens=plan.held_out_tokens, max_document_tokens=plan.held_out_tokens // _PIECES
        )
        train = SplitRecipe(share=1 - 2 * _HELD_OUT, max_tokens=plan.domain_tokens)
        splits = {"train": train, "validation": held_out, "test": held_out}
        self.prepare(self.asked.data, plan, self.data, splits)
        if self.asked.general:
            share = min(_MOST_HELD_OUT, max(_HELD_OUT, _ENOUGH_GENERAL / self.seen.general.num_documents))
            tests = dataclasses.replace(held_out, share=share, max_tokens=2 * plan.held_out_tokens)
            splits = {"replay": SplitRecipe(share=1 - share), "validation": tests}
            self.prepare(self.asked.general, plan, self.general, splits)

    def prepare(self, sources: tuple[str, ...], plan: LearnPlan, out: Path, splits: dict[str, SplitRecipe]) -> None:
        """Sources as a corpus."""
        recipe = dataclasses.replace(make_recipe([*sources], row_tokens=plan.row_tokens), splits=splits)
        prepare(recipe, self.seen.base.folder, out, resume=True)

    def grow(self, plan: LearnPlan) -> None:
        """The deeper model, proved to be the base."""
        out = self.folder / "expanded"
        if plan.after and not (out / RECORD_NAME).is_file():
            expand(self.seen.base, out, make_plan(self.seen.base, after=plan.after), prove=True)

    def recipe(self, plan: LearnPlan, arm: Arm) -> TrainSettings:
        """What `train` is given: for each arm the same tokens and the same retention, on the same general text."""
        from blockexpand.training.choices import settings_of
        from blockexpand.training.data import own_folders

        first = arm == self.asked.arm
        general = {ALL_TEXT: self.general} if self.asked.general else {}
        return settings_of(
            self.asked,
            plan,
            arm,
            model=self.folder / "expanded" if arm == "blocks" else self.seen.base.folder,
            out=self.out if first else self.folder / arm,
            domain=self.data,
            general=general or ({} if first else own_folders(self.recipe(plan, self.asked.arm))),
        )

    def judge(self, runs: dict[Arm, RunRecord]) -> dict[Arm, Learnt]:
        """What each arm gained and lost, and whether the base is still in the model that has new blocks."""
        from blockexpand.evaluation.outcome import learnt_by, measure_text

        base = measure_text(self.seen.base.folder, self.data, "the base", self.device)
        found = {}
        for arm, run in runs.items():
            model = Path(run.settings.out) / "model"
            now = measure_text(model, self.data, arm, self.device)
            whole = verify(self.seen.base, model, trained=True).passed if arm == "blocks" else None
            found[arm] = learnt_by(arm, run, base, now, bypass_is_base=whole)
        return found

    def ask(self) -> tuple[Said, ...]:
        """Beginnings of test documents, continued by the base and by what was learnt."""
        from blockexpand.serving.samples import beginnings, continue_texts

        prompts = beginnings(open_corpus(self.data), _PROMPTS)
        before, after = (continue_texts(model, prompts, self.device) for model in (self.seen.base.folder, self.out))
        return tuple(Said(prompt=p, before=b, after=a) for (p, b), (_, a) in zip(before, after, strict=True))

    def leave(self, plan: LearnPlan, record: LearnRecord) -> None:
        """Pack, recipe, page and record, the record last."""
        from blockexpand.packs import extract
        from blockexpand.reporting import report

        if self.asked.arm == "blocks":
            extract(self.out, self.out / "pack", overwrite=True)
        write_recipe(self.out / "recipe.yaml", self.recipe(plan, self.asked.arm))
        runs = [self.out, *(self.folder / arm for arm in self.asked.against)]
        report(runs, self.out / "report", overwrite=True, learnt=record)
        write_record(self.out / _RECORD, record)
