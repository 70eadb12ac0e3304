"""Tasks learnt one after another by each method, as in TRACE: the matrix of scores, what is kept, what is lost.

In: a sequence's settings, a base, general text. Out: a folder with one run a stage, its scores question by question,
and a `SequenceResult`. A method with a pack for each task grows them all on the base, so that learning one task cannot
touch another; which task a question is of is then told, or the question chooses; without a pack the model is the base.
What is finished is not run again. Chains run one after another.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from blockexpand.corpus import PrepareRecipe, SplitRecipe, prepare
from blockexpand.corpus.sources import ChatSource
from blockexpand.corpus.tokenizer import tokenizer_digest
from blockexpand.digests import digest_json
from blockexpand.evaluation.answers import AnswerTask
from blockexpand.expansion import expand, plan
from blockexpand.packs import About, Pack, extract, load_with_packs, read_pack
from blockexpand.progress import say
from blockexpand.records import read_record
from blockexpand.records.run import DataSettings, RunRecord, TrainSettings
from blockexpand.staging import PACK_NAME, RECORD_NAME
from blockexpand.studies.recipe import MethodRecipe, SequenceRecipe
from blockexpand.studies.scoring import Measure
from blockexpand.studies.tasks import make_task
from blockexpand.training import load_shipped, train
from blockexpand.training.arms import load_model
from blockexpand.training.run import run_digest

# T = tasks, Q = held-out questions of a task, M = general test documents, C = choices: the base and each task's pack.

ROW_TOKENS = 256
"""Of the rows that the tasks' conversations are packed into."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """One method and seed, from the base through all tasks."""

    method: str
    seed: int
    scores_TTQ: np.ndarray
    """[learnt, task, question]: after learning task t, each held-out question of task i."""
    general_TM: np.ndarray
    """[learnt, document]: nats of general documents after learning task t. Of packs that are told, with t's."""
    num_trainable_parameters: int
    cpu_seconds: float
    runs: tuple[str, ...]
    """The digest of the settings of each task's run."""
    chosen_TC: np.ndarray | None = None
    """[task, choice]: of packs that are not told, the share of the task's questions that chose the base, or the pack of
    each task, after the last one."""

    @property
    def matrix_TT(self) -> np.ndarray:
        """R: the mean score on task i after learning task t."""
        return self.scores_TTQ.mean(axis=2)

    @property
    def final_TQ(self) -> np.ndarray:
        """Scores after the last task."""
        return self.scores_TTQ[-1]

    @property
    def change_TQ(self) -> np.ndarray:
        """Scores after the last task minus those right after learning the task itself."""
        own = np.arange(len(self.scores_TTQ))
        return self.scores_TTQ[-1] - self.scores_TTQ[own, own]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceResult:
    """All chains, and the base before any task."""

    tasks: tuple[str, ...]
    methods: tuple[MethodRecipe, ...]
    base_TQ: np.ndarray
    base_general_M: np.ndarray
    tokens_M: np.ndarray
    """Tokens of each general document."""
    chains: tuple[Chain, ...]

    def of(self, method: str) -> list[Chain]:
        """A method's chains, by seed."""
        return [chain for chain in self.chains if chain.method == method]


def overall(matrix_TT: np.ndarray) -> float:
    """OP: the mean score over all tasks after the last one (Chaudhry et al. 2018)."""
    return float(matrix_TT[-1].mean())


def backward_transfer(matrix_TT: np.ndarray) -> float:
    """BWT: the mean over tasks of the score after the last one minus the score right after learning it.

    Over all T tasks, of which the last adds zero; Lopez-Paz and Ranzato 2017 divide by T - 1.
    """
    return float((matrix_TT[-1] - matrix_TT.diagonal()).mean())


def run_sequence(recipe: SequenceRecipe, base: Path, data: DataSettings, folder: Path) -> SequenceResult:
    """Run every chain that is not finished yet.

    Args:
        recipe: The sequence.
        base: The base's folder.
        data: Of which the general text is taken, to measure by and to rehearse.
        folder: For everything that is made.

    Raises:
        StudyError: a task is unknown, or has too few questions.
        TrainingError: a stage cannot be run.
    """
    tasks = {name: _prepare(name, recipe, base, folder / "tasks") for name in recipe.tasks}
    places = (base, tasks, folder)
    assert data.general is not None, "a study has general text"
    measure = Measure(tasks, Path(data.general), recipe.general_rows)
    first = measure.scores(folder / "base", lambda: load_model(base, torch.float32))
    chains = []
    for method in recipe.methods:
        for seed in recipe.seeds:
            say(f"{method.name}, seed {seed}")
            stages = _Stages(method, seed, recipe, data.general, places)
            chains.append(_packs_chain(stages, measure) if method.per_task else _chain(stages, measure))
    return SequenceResult(
        tasks=recipe.tasks,
        methods=recipe.methods,
        base_TQ=first["scores"],
        base_general_M=first["general"],
        tokens_M=first["tokens"],
        chains=tuple(chains),
    )


def _prepare(name: str, recipe: SequenceRecipe, base: Path, folder: Path) -> Path:
    """The task's conversations as prepared folders: to learn the answers from, or all turns, and held out."""
    train, test = make_task(name, recipe.num_train, recipe.num_test)
    made_of = [[list(map(_turns, questions)) for questions in (train, test)], ROW_TOKENS, tokenizer_digest(base)]
    out = folder / f"{name}-{digest_json(made_of).removeprefix('sha256:')[:8]}"
    wanted = {method.trained_turns for method in recipe.methods}
    folders = [(_train_folder(turns), "train", turns, train) for turns in sorted(wanted)]
    for at, split, turns, questions in (*folders, ("test", "test", "assistant", test)):
        if (out / at / RECORD_NAME).is_file():
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{split}.jsonl"
        path.write_text("".join(json.dumps(_turns(one)) + "\n" for one in questions), encoding="utf-8")
        source = ChatSource(kind="chat", path=str(path))
        splits = {split: SplitRecipe(share=1.0)}
        made = PrepareRecipe(sources=(source,), row_tokens=ROW_TOKENS, splits=splits, trained_turns=turns)
        prepare(made, base, out / at)
    return out


def _train_folder(turns: str) -> str:
    return "train" if turns == "assistant" else f"train-{turns}"


def _turns(one: AnswerTask) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]}


@dataclasses.dataclass(frozen=True)
class _Stages:
    """The runs of one method and seed."""

    method: MethodRecipe
    seed: int
    recipe: SequenceRecipe
    general: str
    places: tuple[Path, Mapping[str, Path], Path]
    """The base, the tasks, the folder."""

    @property
    def folder(self) -> Path:
        """Of this method's runs: those of packs are the same whether the task is told or not."""
        same = dataclasses.replace(self.method, name="", told=True)
        first = next(m for m in self.recipe.methods if dataclasses.replace(m, name="", told=True) == same)
        slug = "".join(c if c.isalnum() else "-" for c in first.name.lower())
        return self.places[2] / "runs" / f"{slug}-seed{self.seed}"

    @property
    def start(self) -> Path:
        """What the first task is learnt by."""
        base, _, folder = self.places
        return base if self.method.blocks is None else _expanded(base, self.method.blocks, folder / "expanded")

    def names(self) -> list[str]:
        """The tasks."""
        return list(self.places[1])

    def run(self, number: int) -> Path:
        """The folder of a task's run."""
        return self.folder / f"{number + 1}-{self.names()[number]}"

    def trained(self, number: int, model: Path) -> RunRecord:
        """The run of a task, done now unless it is finished."""
        task = self.places[1][self.names()[number]]
        return _trained(_stage(self.method, (self.recipe, self.general), (model, self.run(number)), task, self.seed))


def _chain(stages: _Stages, measure: Measure) -> Chain:
    """One model through all tasks."""
    at, records, found = stages.start, [], []
    for number, _ in enumerate(stages.names()):
        run = stages.run(number)
        records.append(stages.trained(number, at))
        found.append(measure.scores(run / "scores", lambda run=run: load_shipped(run)))
        at = run / "model"
    return _counted(
        stages,
        records,
        scores_TTQ=np.stack([one["scores"] for one in found]),
        general_TM=np.stack([one["general"] for one in found]),
    )


def _packs_chain(stages: _Stages, measure: Measure) -> Chain:
    """A pack for each task, each grown on the base."""
    base, _, folder = stages.places
    records = [stages.trained(number, stages.start) for number, _ in enumerate(stages.names())]
    packs = [_packed(stages.run(number), name) for number, name in enumerate(stages.names())]
    if not stages.method.told:
        found = measure.routed(stages.folder / "routed", base, packs)
        chosen_TC = np.stack([(found["chosen"] == choice).mean(axis=1) for choice in range(len(packs) + 1)], axis=1)
        return _counted(stages, records, scores_TTQ=found["scores"], general_TM=found["general"], chosen_TC=chosen_TC)
    alone = [
        measure.scores(stages.run(number) / "pack-scores", lambda pack=pack: load_with_packs(base, [pack]))
        for number, pack in enumerate(packs)
    ]
    base_TQ = measure.scores(folder / "base", lambda: load_model(base, torch.float32))["scores"]
    scores_TTQ = with_own_packs(np.stack([one["scores"] for one in alone]), base_TQ)
    scores_TTQ[-1] = measure.told(base, packs)
    return _counted(stages, records, scores_TTQ=scores_TTQ, general_TM=np.stack([one["general"] for one in alone]))


def _counted(stages: _Stages, records: Sequence[RunRecord], **arrays: np.ndarray) -> Chain:
    """The arrays of a chain, with what it took."""
    sets = len(records) if stages.method.per_task else 1
    return Chain(
        method=stages.method.name,
        seed=stages.seed,
        num_trainable_parameters=records[0].num_trainable_parameters * sets,
        cpu_seconds=sum(record.cpu_seconds or 0.0 for record in records),
        runs=tuple(record.settings_digest for record in records),
        **arrays,
    )


def _packed(run: Path, name: str) -> Pack:
    """The run's new blocks as a pack, named as its task."""
    out = run / "pack"
    return read_pack(out) if (out / PACK_NAME).is_file() else extract(run, out, About(name=name))


def _trained(settings: TrainSettings) -> RunRecord:
    """The run of these settings, done now unless it is finished."""
    path = Path(settings.out) / RECORD_NAME
    if path.is_file():
        record = read_record(RunRecord, path)
        if record.settings_digest == run_digest(settings):
            return record
    return train(settings, resume=True)


def with_own_packs(scores_TTQ: np.ndarray, base_TQ: np.ndarray) -> np.ndarray:
    """The matrix of a pack for each task: a learnt task is answered with its own pack, the others by the base.

    Args:
        scores_TTQ: [pack, task, question]: the base with task t's pack, on every task.
        base_TQ: The base's.
    """
    own_TTQ = np.stack([base_TQ] * len(scores_TTQ))
    for learnt in range(len(scores_TTQ)):
        for task in range(learnt + 1):
            own_TTQ[learnt, task] = scores_TTQ[task, task]
    return own_TTQ


def _expanded(base: Path, blocks: int, folder: Path) -> Path:
    wanted = plan(base, blocks)
    out = folder / "-".join(str(block.after) for block in wanted.new_blocks)
    if not (out / RECORD_NAME).is_file():
        expand(base, out, wanted)
    return out


def _stage(
    method: MethodRecipe, settings: tuple[SequenceRecipe, str], folders: tuple[Path, Path], task: Path, seed: int
) -> TrainSettings:
    (recipe, general), (model, run) = settings, folders
    wants_general = recipe.retention.replay > 0
    return TrainSettings(
        model=str(model),
        out=str(run),
        arm=method.arm,
        data=DataSettings(
            domain=str(task / _train_folder(method.trained_turns)),
            general=general if wants_general else None,
            validation_rows=0,
        ),
        domain_tokens=recipe.tokens_per_task,
        rows_per_step=recipe.rows_per_step,
        rows_per_pass=recipe.rows_per_step,
        optimizer=dataclasses.replace(method.optimizer, lr=method.lr),
        retention=recipe.retention,
        checkpoint_every_steps=10**9,
        seed=seed,
    )
