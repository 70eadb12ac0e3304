"""`evaluate`: a model on prepared corpora and tasks, into a folder of records.

Out: `blockexpand.json` (the figures, what was measured and with what), `losses-<name>.npz` (one entry a
document, for pairing) and `answers.jsonl` (one line a sample).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from blockexpand import __version__
from blockexpand.checkpoint import locate_model, open_checkpoint
from blockexpand.corpus.rows import Corpus, open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import EvaluationError
from blockexpand.evaluation.answers import AnswerTask, answer, score
from blockexpand.evaluation.held_out import document_losses
from blockexpand.evaluation.routes import Router, count_of, routed_losses
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device
from blockexpand.records import to_plain, write_record
from blockexpand.records.evaluation import (
    Answered,
    DocumentLosses,
    EvaluationRecord,
    RoutedLoss,
    Routing,
    read_evaluation,
)
from blockexpand.records.intervals import Interval, mean_difference, ratio_difference
from blockexpand.records.pack import Rule
from blockexpand.staging import RECORD_NAME, staged_folder

_ROWS_PER_PASS = 16
_MAX_NEW_TOKENS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to measure that is not simply a checkpoint's folder."""

    name: str
    """What the record calls it."""
    tokenizer: Path
    """The folder of its tokenizer."""
    digest: Callable[[], str]
    """Of its weights."""
    load: Callable[[], PreTrainedModel]
    """The model, in eval mode."""
    rule: Rule | None = None
    """How packs are chosen for each document and question; none = those that are on stay on."""


def evaluate(
    model: str | Path | Subject,
    data: Mapping[str, str | Path],
    out: str | Path,
    tasks: list[AnswerTask] | None = None,
    split: str = "test",
    overwrite: bool = False,
) -> EvaluationRecord:
    """Measure a model.

    Args:
        model: The folder of a checkpoint, or a model that no folder holds.
        data: Prepared folders by name, e.g. {"general": .., "domain": ..}.
        out: The folder of records to write.
        tasks: Questions with checkable answers, asked through the chat template.
        split: Which split of the prepared folders.
        overwrite: Replace an earlier folder of records.

    Raises:
        EvaluationError: nothing to measure, or the model and the data do not fit together.
        LiveError: the model cannot be loaded.
    """
    if not data and not tasks:
        raise EvaluationError("nothing to measure: give at least one corpus (--data name=folder) or tasks")
    subject = model if isinstance(model, Subject) else _of_folder(locate_model(model))
    work = HeldOutWork.of(subject.tokenizer, data, tasks or [], split)
    with staged_folder(Path(out), overwrite) as staged:
        found = work.measure(subject.load(), subject.rule)
        record = EvaluationRecord(
            blockexpand_version=__version__,
            model=subject.name,
            model_digest=subject.digest(),
            versions=_versions(),
            **work.figures(found),
        )
        found.write(staged)
        write_record(staged / RECORD_NAME, record)
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutFound:
    """The parts of the figures, for pairing."""

    losses: dict[str, DocumentLosses]
    answered: list[Answered]
    routing: Routing | None = None

    def write(self, folder: Path) -> None:
        """Into a folder of records."""
        for name, one in self.losses.items():
            np.savez(folder / f"losses-{name}.npz", nats=one.nats_M, tokens=one.tokens_M)
        lines = (json.dumps(to_plain(one), ensure_ascii=False) for one in self.answered)
        (folder / "answers.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutWork:
    """Prepared corpora and tasks with checkable answers, checked against the model's tokenizer."""

    tokenizer: Path
    """Its folder."""
    corpora: dict[str, Corpus]
    tasks: list[AnswerTask]
    split: str

    @staticmethod
    def of(tokenizer: Path, data: Mapping[str, str | Path], tasks: list[AnswerTask], split: str) -> HeldOutWork:
        """The corpora in the folders `data` names.

        Raises:
            EvaluationError: one was prepared with another tokenizer than the one in that folder.
        """
        corpora = {name: open_corpus(path) for name, path in data.items()}
        for name, corpus in corpora.items():
            _check_tokenizer(tokenizer, name, corpus)
        return HeldOutWork(tokenizer=tokenizer, corpora=corpora, tasks=tasks, split=split)

    def measure(self, loaded: PreTrainedModel, rule: Rule | None = None) -> HeldOutFound:
        """The losses of each document and the answers of each task; with a rule, each with packs of its own.

        Raises:
            PackError: there is a rule, and the model has no packs.
        """
        tokenizer = load_tokenizer(self.tokenizer)
        router = Router(loaded, tokenizer, rule) if rule else None
        losses: dict[str, DocumentLosses] = {}
        routed: dict[str, RoutedLoss] = {}
        for name, corpus in self.corpora.items():
            rows, title = corpus.rows(self.split), f"loss on {name}"
            if router is None:
                losses[name] = document_losses(loaded, rows, _ROWS_PER_PASS, title)
            else:
                losses[name], routed[name] = routed_losses(router, rows, _ROWS_PER_PASS, title)
        answered = answer(loaded, tokenizer, self.tasks, _MAX_NEW_TOKENS, router) if self.tasks else []
        counts = count_of([one.route for one in answered])
        routing = dataclasses.replace(router.record(), held_out=routed, answers=counts) if router else None
        return HeldOutFound(losses=losses, answered=answered, routing=routing)

    def figures(self, found: HeldOutFound) -> dict[str, Any]:
        """The record's fields."""
        splits = {name: corpus.record.splits[self.split] for name, corpus in self.corpora.items()}
        return {
            "held_out": {n: one.summary(splits[n].num_bytes) for n, one in found.losses.items()},
            "corpora": {name: split.digest for name, split in splits.items()},
            "answers": score(found.answered) if found.answered else None,
            "routing": found.routing,
        }


def _check_tokenizer(folder: Path, name: str, corpus: Corpus) -> None:
    if corpus.record.tokenizer_digest != tokenizer_digest(folder):
        raise EvaluationError(
            f"the corpus {name!r} ({corpus.folder}) was prepared with another tokenizer than the one in {folder}; "
            "prepare it again with this model's"
        )


def _of_folder(folder: Path) -> Subject:
    return Subject(name=str(folder), tokenizer=folder, digest=lambda: model_digest(folder), load=lambda: _load(folder))


def _load(folder: Path) -> PreTrainedModel:
    return cast(PreTrainedModel, load_model(folder, device=str(choose_device())))


def model_digest(folder: Path) -> str:
    """One digest for all weights files of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    return digest_json({name: digest_file(checkpoint.folder / name) for name in checkpoint.shards})


def _versions() -> dict[str, str]:
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def differences(ours: str | Path, theirs: str | Path) -> dict[str, Interval]:
    """The paired differences of two folders of records, ours minus theirs.

    Losses in nats per token by the corpus' name; `answers`, the share right, where both answered.

    Raises:
        EvaluationError: they were not measured on the same documents, or share nothing.
    """
    a, b = read_evaluation(ours), read_evaluation(theirs)
    found = {}
    for name in a.losses.keys() & b.losses.keys():
        if a.record.corpora[name] != b.record.corpora[name]:
            raise EvaluationError(
                f"{ours} and {theirs} were measured on different documents of {name!r} "
                f"({a.record.corpora[name][:19]}..., {b.record.corpora[name][:19]}...); evaluate both on one corpus"
            )
        found[name] = ratio_difference(a.losses[name].nats_M, b.losses[name].nats_M, a.losses[name].tokens_M)
    if a.answered and [x.prompt for x in a.answered] == [x.prompt for x in b.answered]:
        found["answers"] = mean_difference([x.right for x in a.answered], [x.right for x in b.answered])
    if not found and not (a.record.suites and b.record.suites):
        raise EvaluationError(f"{ours} and {theirs} have no corpus and no tasks in common; evaluate both on the same")
    return dict(sorted(found.items()))
