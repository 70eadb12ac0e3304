"""Tasks learnt one after another by each method, as in TRACE: the matrix of scores, what is kept, what is lost.

In: a sequence's settings, a base, general text. Out: a folder with one run a stage, its scores question by question,
and a `SequenceResult`. A method with a pack for each task grows them all on the base, so that learning one task cannot
touch another; which task a question is of is then told, and without a pack the model is the base. What is finished is
not run again. Chains run one after another.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from blockexpand.corpus import PrepareRecipe, SplitRecipe, open_corpus, prepare
from blockexpand.corpus.sources import ChatSource
from blockexpand.corpus.tokens import tokenizer_digest
from blockexpand.digests import digest_json
from blockexpand.evaluation import AnswerTask
from blockexpand.evaluation.hits import document_hits
from blockexpand.evaluation.losses import document_losses
from blockexpand.expansion import expand
from blockexpand.packs import About, Pack, extract, load_with_packs, read_pack
from blockexpand.packs.memory import only
from blockexpand.planning import plan
from blockexpand.progress import say
from blockexpand.records import read_record
from blockexpand.staging import PACK_NAME, RECORD_NAME, staged_folder
from blockexpand.studies.recipe import MethodRecipe, SequenceRecipe
from blockexpand.studies.tasks import TASKS, make_task
from blockexpand.training import RunRecord, load_shipped, train
from blockexpand.training.arms.trainee import load_model
from blockexpand.training.running import run_digest
from blockexpand.training.settings import DataSettings, TrainSettings

# T = tasks, Q = held-out questions of a task, M = general test documents.

_SCORES_NAME = "scores.npz"
_ROWS_PER_PASS = 16
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
    """[learnt, document]: nats of each general test document after learning task t. Of packs: with task t's on."""
    num_trainable_parameters: int
    cpu_seconds: float
    runs: tuple[str, ...]
    """The digest of the settings of each task's run."""

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
    assert data.general is not None, "a study has general text"
    measure = _Measure(tasks, Path(data.general), recipe.general_rows)
    first = measure.scores(folder / "base", lambda: load_model(base, torch.float32))
    chains = []
    for method in recipe.methods:
        for seed in recipe.seeds:
            say(f"{method.name}, seed {seed}")
            chains.append(_chain(method, seed, (recipe, data.general), (base, tasks, folder), measure))
    return SequenceResult(
        tasks=recipe.tasks,
        methods=recipe.methods,
        base_TQ=first["scores"],
        base_general_M=first["general"],
        tokens_M=first["tokens"],
        chains=tuple(chains),
    )


def _prepare(name: str, recipe: SequenceRecipe, base: Path, folder: Path) -> Path:
    """The task's conversations as two prepared folders: to learn from, and held out."""
    train, test = make_task(name, recipe.num_train, recipe.num_test)
    made_of = [[list(map(_turns, questions)) for questions in (train, test)], ROW_TOKENS, tokenizer_digest(base)]
    out = folder / f"{name}-{digest_json(made_of).removeprefix('sha256:')[:8]}"
    for split, questions in (("train", train), ("test", test)):
        if (out / split / RECORD_NAME).is_file():
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{split}.jsonl"
        path.write_text("".join(json.dumps(_turns(one)) + "\n" for one in questions), encoding="utf-8")
        splits = {split: SplitRecipe(share=1.0)}
        source = ChatSource(kind="chat", path=str(path))
        prepare(PrepareRecipe(sources=(source,), row_tokens=ROW_TOKENS, splits=splits), base, out / split)
    return out


def _turns(one: AnswerTask) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]}


class _Measure:
    """How every model is scored: on all tasks' held-out questions, and on the general test text."""

    def __init__(self, tasks: Mapping[str, Path], general: Path, general_rows: int) -> None:
        corpora = {name: open_corpus(path / "test") for name, path in tasks.items()}
        self._rows = {name: corpus.rows("test") for name, corpus in corpora.items()}
        self._general = open_corpus(general).rows("test").first(general_rows)
        texts = {name: corpus.record.splits["test"].digest for name, corpus in corpora.items()}
        general_digest = open_corpus(general).record.splits["test"].digest
        scored = [(name, digest, TASKS[name].measure) for name, digest in texts.items()]
        self._key = digest_json([scored, general_digest, general_rows]).removeprefix("sha256:")[:8]

    def scores(self, beside: Path, load: Callable[[], PreTrainedModel]) -> dict[str, np.ndarray]:
        """The scores of the model that `load` gives, kept in `beside`-KEY: KEY is of all that is measured on."""
        folder = beside.with_name(f"{beside.name}-{self._key}")
        if not (folder / _SCORES_NAME).is_file():
            model = load()
            scores_TQ = np.stack([self.task(name, model) for name in self._rows])
            general = document_losses(model, self._general, _ROWS_PER_PASS, "loss on general text")
            with staged_folder(folder, overwrite=False) as staged:
                np.savez(staged / _SCORES_NAME, scores=scores_TQ, general=general.nats_M, tokens=general.tokens_M)
        with np.load(folder / _SCORES_NAME, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("scores", "general", "tokens")}

    def task(self, name: str, model: PreTrainedModel) -> np.ndarray:
        """The scores of a model in memory on one task's questions."""
        hits = document_hits(model, self._rows[name], _ROWS_PER_PASS)
        return hits.whole_M.astype(float) if TASKS[name].measure == "whole" else hits.share_M


def _chain(
    method: MethodRecipe,
    seed: int,
    settings: tuple[SequenceRecipe, str],
    places: tuple[Path, Mapping[str, Path], Path],
    measure: _Measure,
) -> Chain:
    """One method through all tasks; `settings`: the sequence's, general text; `places`: base, tasks, folder."""
    (recipe, general), (base, tasks, folder) = settings, places
    slug = "".join(c if c.isalnum() else "-" for c in method.name.lower())
    start = base if method.blocks is None else _expanded(base, method.blocks, folder / "expanded")
    at, scores, losses, records, packs = start, [], [], [], []
    for number, (name, task) in enumerate(tasks.items()):
        run = folder / "runs" / f"{slug}-seed{seed}" / f"{number + 1}-{name}"
        records.append(_trained(_stage(method, (recipe, general), (at, run), task, seed)))
        if method.per_task:
            packs.append(_packed(run, name))
            found = measure.scores(run / "pack-scores", lambda: load_with_packs(base, [packs[-1]]))
        else:
            found = measure.scores(run / "scores", lambda run=run: load_shipped(run))
            at = run / "model"
        scores.append(found["scores"])
        losses.append(found["general"])
    scores_TTQ = np.stack(scores)
    if method.per_task:
        base_TQ = measure.scores(folder / "base", lambda: load_model(base, torch.float32))["scores"]
        scores_TTQ = with_own_packs(scores_TTQ, base_TQ)
        scores_TTQ[-1] = _switched(base, packs, measure)
    return Chain(
        method=method.name,
        seed=seed,
        scores_TTQ=scores_TTQ,
        general_TM=np.stack(losses),
        num_trainable_parameters=records[0].num_trainable_parameters * (len(tasks) if method.per_task else 1),
        cpu_seconds=sum(record.cpu_seconds or 0.0 for record in records),
        runs=tuple(record.settings_digest for record in records),
    )


def _packed(run: Path, name: str) -> Pack:
    """The run's new blocks as a pack, named as its task."""
    out = run / "pack"
    return read_pack(out) if (out / PACK_NAME).is_file() else extract(run, out, About(name=name))


def _switched(base: Path, packs: Sequence[Pack], measure: _Measure) -> np.ndarray:
    """[task, question]: all packs attached to one model, and for each task its own switched on, the others off."""
    model = load_with_packs(base, packs)
    rows = []
    for pack in packs:
        with only(model, pack.name):
            rows.append(measure.task(pack.name, model))
    return np.stack(rows)


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
        data=DataSettings(domain=str(task / "train"), general=general if wants_general else None, validation_rows=0),
        domain_tokens=recipe.tokens_per_task,
        rows_per_step=recipe.rows_per_step,
        rows_per_pass=recipe.rows_per_step,
        optimizer=dataclasses.replace(method.optimizer, lr=method.lr),
        retention=recipe.retention,
        checkpoint_every_steps=10**9,
        seed=seed,
    )
