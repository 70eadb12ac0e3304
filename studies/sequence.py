"""Tasks learnt one after another by each method, as in TRACE: the matrix of scores, what is kept, what is lost.

In: a sequence's settings, a base, general text. Out: a folder with one run a stage, and a `SequenceRecord`. A method
with a pack for each task grows them all on the base, so that learning one task cannot touch another; which task a
question is of is then told. What is finished is not run again. Chains run one after another.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import blockexpand
from blockexpand.comparison import over_seeds
from blockexpand.corpus import PrepareRecipe
from blockexpand.digests import digest_json
from blockexpand.records import from_plain, read_record, write_record
from blockexpand.records.comparison import Summary
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.intervals import Interval, ratio_difference
from blockexpand.records.run import DataSettings, RunRecord, TrainSettings
from blockexpand.staging import RECORD_NAME
from studies.recipe import MethodRecipe, SequenceRecipe
from studies.tasks import TASKS, Question, make_task

# T = tasks, Q = held-out questions of a task, M = general test documents.

ROW_TOKENS = 256
"""Of the rows that the tasks' conversations are packed into."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way of learning the row, over the seeds."""

    name: str
    matrix: tuple[tuple[float, ...], ...]
    """R: row t, column i is the mean score on task i after learning task t, the mean over the seeds."""
    op: Summary
    """The mean score over all tasks after the last one (Chaudhry et al. 2018)."""
    bwt: Summary
    """The mean over all tasks of the score after the last one minus the score right after learning it (of T tasks, of
    which the last adds zero; Lopez-Paz and Ranzato 2017 divide by T - 1)."""
    rise: Summary
    """General loss after the last task over the base's, minus 1; of packs the mean over them, each on."""
    num_trainable_parameters: int
    cpu_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRecord:
    """A finished row of tasks; saved as `sequence.json`."""

    FORMAT: ClassVar[str] = "blockexpand.sequence"
    FORMAT_VERSION: ClassVar[int] = 1

    settings: SequenceRecipe
    base: tuple[float, ...]
    """The base's score on each task."""
    methods: tuple[Method, ...]


def overall(matrix_TT: np.ndarray) -> float:
    """OP of one matrix."""
    return float(matrix_TT[-1].mean())


def backward_transfer(matrix_TT: np.ndarray) -> float:
    """BWT of one matrix."""
    return float((matrix_TT[-1] - matrix_TT.diagonal()).mean())


def run_sequence(recipe: SequenceRecipe, base: Path, general: str, folder: Path) -> SequenceRecord:
    """Run every chain that is not finished yet."""
    questions = {name: make_task(name, recipe.num_train, recipe.num_test) for name in recipe.tasks}
    texts = {name: _prepare(name, base, train, folder / "tasks") for name, (train, _) in questions.items()}
    tests = {name: test for name, (_, test) in questions.items()}
    base_TQ, base_losses = _measure(base, tests, general, folder / "base")
    methods = []
    for method in recipe.methods:
        chains = [_chain(method, seed, recipe, base, general, texts, folder) for seed in recipe.seeds]
        measured = [[_measure(run / "model", tests, general, run / "measured") for run, _ in chain] for chain in chains]
        methods.append(
            _summed(method, [[record for _, record in chain] for chain in chains], measured, base_TQ, base_losses)
        )
    record = SequenceRecord(settings=recipe, base=tuple(map(float, base_TQ.mean(axis=1))), methods=tuple(methods))
    write_record(folder / "sequence.json", record)
    return record


def _prepare(name: str, base: Path, train: Sequence[Question], folder: Path) -> str:
    """The task's conversations as a prepared folder, named by what is in it."""
    turns = [one.turns for one in train]
    out = folder / f"{name}-{digest_json([turns, ROW_TOKENS]).removeprefix('sha256:')[:8]}"
    if not (out / RECORD_NAME).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{out.name}.jsonl"
        path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns), encoding="utf-8")
        source = {"path": str(path)}
        recipe = {"sources": [source], "row_tokens": ROW_TOKENS, "splits": {"train": {"share": 1.0}}}
        blockexpand.prepare(from_plain(PrepareRecipe, recipe, name), base, out)
    return str(out)


def _chain(
    method: MethodRecipe,
    seed: int,
    recipe: SequenceRecipe,
    base: Path,
    general: str,
    texts: dict[str, str],
    folder: Path,
) -> list[tuple[Path, RunRecord]]:
    """One method and seed through all tasks: each task's run folder and record."""
    start = base if method.blocks is None else _expanded(base, method.blocks, folder / "expanded")
    slug = "".join(c if c.isalnum() else "-" for c in method.name.lower())
    model, done = start, []
    for number, (name, text) in enumerate(texts.items(), 1):
        run = folder / "runs" / f"{slug}-seed{seed}" / f"{number}-{name}"
        rehearses = recipe.retention.replay > 0
        settings = TrainSettings(
            model=str(model),
            out=str(run),
            arm=method.arm,
            data=DataSettings(domain=text, general=general if rehearses else None, validation_rows=0),
            domain_tokens=recipe.tokens_per_task,
            rows_per_step=recipe.rows_per_step,
            rows_per_pass=recipe.rows_per_step,
            optimizer=dataclasses.replace(method.optimizer, lr=method.lr),
            retention=recipe.retention,
            checkpoint_every_steps=10**9,
            seed=seed,
        )
        done.append((run, _trained(settings)))
        model = start if method.per_task else run / "model"
    return done


def _trained(settings: TrainSettings) -> RunRecord:
    """The run of these settings, done now unless it is finished."""
    path = Path(settings.out) / RECORD_NAME
    if path.is_file():
        record = read_record(RunRecord, path)
        if record.settings == settings:
            return record
    return blockexpand.train(settings, resume=True)


def _expanded(base: Path, blocks: int, folder: Path) -> Path:
    out = folder / str(blocks)
    if not (out / RECORD_NAME).is_file():
        blockexpand.expand(base, out, blockexpand.plan(base, blocks))
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measured:
    """The scores of one model, kept beside it."""

    FORMAT: ClassVar[str] = "blockexpand.sequence-scores"
    FORMAT_VERSION: ClassVar[int] = 1

    questions: str
    """The digest of the questions."""
    scores: tuple[tuple[float, ...], ...]


def _measure(model: Path, tests: dict[str, list[Question]], general: str, beside: Path) -> tuple[np.ndarray, Any]:
    """[task, question] scores, and the losses on general test documents; measured once."""
    asked = digest_json([[name, [one.turns for one in test]] for name, test in tests.items()])
    path = beside.with_name(f"{beside.name}-scores.json")
    if not path.is_file() or read_record(_Measured, path).questions != asked:
        scores_TQ = _scores(model, tests)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, _Measured(questions=asked, scores=tuple(tuple(map(float, row)) for row in scores_TQ)))
    if not (beside / RECORD_NAME).is_file():
        blockexpand.evaluate(model, {"general": general}, beside)
    return np.array(read_record(_Measured, path).scores), read_evaluation(beside).losses["general"]


def _scores(folder: Path, tests: dict[str, list[Question]]) -> np.ndarray:
    """[task, question]: whether an answer is right to the letter, or the share of its tokens that are, each given those
    before it: what greedy decoding writes, without decoding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for name, test in tests.items():
        scores = []
        for one in test:
            prompt = tokenizer.apply_chat_template(one.turns[:1], add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template(one.turns, return_dict=False)
            with torch.no_grad():
                said = model(torch.tensor([whole]), use_cache=False).logits[0].argmax(-1)
            right = said[len(prompt) - 1 : -1] == torch.tensor(whole[len(prompt) :])
            scores.append(float(right.all()) if TASKS[name].measure == "whole" else right.float().mean().item())
        rows.append(scores)
    return np.array(rows)


def _summed(
    method: MethodRecipe,
    records: list[list[RunRecord]],
    measured: list[list[tuple[np.ndarray, Any]]],
    base_TQ: np.ndarray,
    base_losses: Any,
) -> Method:
    matrices, rises = [], []
    scale = base_losses.tokens_M.sum() / base_losses.nats_M.sum()
    for chain in measured:
        scores_TTQ = np.stack([scores_TQ for scores_TQ, _ in chain])
        matrices.append(with_own_packs(scores_TTQ, base_TQ) if method.per_task else scores_TTQ)
        nats_TM = np.stack([losses.nats_M for _, losses in chain])
        nats_M = nats_TM.mean(axis=0) if method.per_task else nats_TM[-1]
        rise = ratio_difference(nats_M, base_losses.nats_M, base_losses.tokens_M)
        rises.append(Interval(difference=rise.difference * scale, low=rise.low * scale, high=rise.high * scale))
    own = np.arange(len(base_TQ))
    finals = [scores_TTQ[-1] for scores_TTQ in matrices]
    changes = [scores_TTQ[-1] - scores_TTQ[own, own] for scores_TTQ in matrices]
    sets = len(records[0]) if method.per_task else 1
    return Method(
        name=method.name,
        matrix=tuple(tuple(map(float, row)) for row in np.mean(matrices, axis=0).mean(axis=2)),
        op=_mean(finals),
        bwt=_mean(changes),
        rise=over_seeds(rises),
        num_trainable_parameters=records[0][0].num_trainable_parameters * sets,
        cpu_seconds=float(np.mean([sum(record.cpu_seconds or 0.0 for record in chain) for chain in records])),
    )


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


def _mean(scores: Sequence[np.ndarray]) -> Summary:
    """The mean of [task, question]: over seeds, or of one seed with an interval over questions."""
    flat = [one.flatten() for one in scores]
    return over_seeds([ratio_difference(one, np.zeros_like(one), np.ones_like(one)) for one in flat])


def sequence_tables(record: SequenceRecord) -> str:
    """OP, BWT and the change of the general ability of every method, and each matrix, as Markdown."""
    tasks = record.settings.tasks
    lines = ["| method | OP | BWT | general loss | trained | CPU s a seed |", "| --- | --- | --- | --- | --- | --- |"]
    lines.append(f"| the base | {np.mean(record.base):.3f} | | | | |")
    for one in record.methods:
        op = f"{one.op.mean:.3f} ({one.op.low:.3f} to {one.op.high:.3f})"
        bwt = f"{one.bwt.mean:+.3f} ({one.bwt.low:+.3f} to {one.bwt.high:+.3f})"
        lines.append(
            f"| {one.name} | {op} | {bwt} | {one.rise.mean:+.2%} | {one.num_trainable_parameters:,} | "
            f"{one.cpu_seconds:.0f} |"
        )
    for one in record.methods:
        lines += ["", f"| R of {one.name} | {' | '.join(tasks)} |", "| --- " * (len(tasks) + 1) + "|"]
        lines.append("| the base | " + " | ".join(f"{score:.2f}" for score in record.base) + " |")
        for task, row in zip(tasks, one.matrix, strict=True):
            lines.append(f"| after {task} | " + " | ".join(f"{score:.2f}" for score in row) + " |")
    return "\n".join(lines) + "\n"
