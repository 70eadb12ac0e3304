"""How the models of a row of tasks are scored: on every task's held-out questions, and on general text.

In: the tasks' prepared folders, general text; a model, or a base with a pack for each task. Out: arrays, kept beside
the run under a name that says what was measured on. With packs a question is answered with the pack of its task,
which is told, or with the one that the question asks for (packs/routing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from blockexpand.corpus import open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.digests import digest_json
from blockexpand.evaluation.held_out import document_losses
from blockexpand.evaluation.routes import Router, routed_among
from blockexpand.packs import Pack, load_with_packs
from blockexpand.packs.in_memory import only
from blockexpand.records import to_plain
from blockexpand.records.pack import Names, Rule
from blockexpand.staging import staged_folder
from blockexpand.studies.hits import document_hits
from blockexpand.studies.tasks import TASKS

# T = tasks, Q = held-out questions of a task, M = general test documents, C = choices: the base and each task's pack.

_SCORES_NAME = "scores.npz"
_ROWS_PER_PASS = 16


class Measure:
    """How every model is scored: on all tasks' held-out questions, and on the general test text."""

    def __init__(self, tasks: Mapping[str, Path], general: Path, general_rows: int) -> None:
        """`tasks`: for each a folder with a prepared one, `test`, in it."""
        corpora = {name: open_corpus(path / "test") for name, path in tasks.items()}
        self._rows = {name: corpus.rows("test") for name, corpus in corpora.items()}
        self._general = open_corpus(general).rows("test").first(general_rows)
        texts = {name: corpus.record.splits["test"].digest for name, corpus in corpora.items()}
        general_digest = open_corpus(general).record.splits["test"].digest
        scored = [(name, digest, TASKS[name].measure) for name, digest in texts.items()]
        self._measured_on = [scored, general_digest, general_rows]

    def scores(self, beside: Path, load: Callable[[], PreTrainedModel]) -> dict[str, np.ndarray]:
        """The scores of the model that `load` gives, kept in `beside`-KEY: KEY is of all that is measured on."""

        def measured() -> dict[str, np.ndarray]:
            model = load()
            scores_TQ = np.stack([self._task(name, model) for name in self._rows])
            general = document_losses(model, self._general, _ROWS_PER_PASS, "loss on general text")
            return {"scores": scores_TQ, "general": general.nats_M, "tokens": general.tokens_M}

        return self._kept(beside, self._measured_on, measured)

    def told(self, base: Path, packs: Sequence[Pack]) -> np.ndarray:
        """[task, question]: all packs attached to one model, and for each task its own switched on, the others off."""
        model = load_with_packs(base, packs)
        rows = []
        for pack in packs:
            with only(model, pack.name):
                rows.append(self._task(pack.name, model))
        return np.stack(rows)

    def routed(self, beside: Path, base: Path, packs: Sequence[Pack]) -> dict[str, np.ndarray]:
        """What the questions' own choice of a pack comes to, kept as `scores`; `packs` in the order of the tasks.

        Returns:
            `scores` [learnt, task, question], of the packs learnt so far; `chosen` [task, question], the pack that was
            chosen of all, counted from 1, 0 for the base; `general` [learnt, document]: nats of general text, routed.
        """
        rule = Rule()
        measured_on = [*self._measured_on, to_plain(rule), [pack.record.fingerprint for pack in packs]]
        return self._kept(beside, measured_on, lambda: self._routed(base, packs, rule))

    def _routed(self, base: Path, packs: Sequence[Pack], rule: Rule) -> dict[str, np.ndarray]:
        model = load_with_packs(base, packs)
        router = Router(model, load_tokenizer(base), rule)
        choices: list[Names] = [(), *((pack.name,) for pack in packs)]
        menus = [choices[: learnt + 2] for learnt in range(len(packs))]
        scores, chosen = [], []
        for name, rows in self._rows.items():
            shares_CQ = self._by_choice(name, model, choices)
            found = routed_among(router, rows, _ROWS_PER_PASS, f"packs for {name}", menus)
            chosen_TQ = np.array([[choices.index(names) for names in one.names_M] for one in found])
            scores.append(shares_CQ[chosen_TQ, np.arange(shares_CQ.shape[1])])
            chosen.append(chosen_TQ[-1])
        general = routed_among(router, self._general, _ROWS_PER_PASS, "packs for general text", menus)
        return {
            "scores": np.stack(scores, axis=1),
            "chosen": np.stack(chosen),
            "general": np.stack([one.losses.nats_M for one in general]),
        }

    def _by_choice(self, task: str, model: PreTrainedModel, choices: Sequence[Names]) -> np.ndarray:
        """[choice, question]: the scores on one task under each choice."""
        rows = []
        for names in choices:
            with only(model, *names):
                rows.append(self._task(task, model))
        return np.stack(rows)

    def _task(self, name: str, model: PreTrainedModel) -> np.ndarray:
        """The scores of a model in memory on one task's questions."""
        hits = document_hits(model, self._rows[name], _ROWS_PER_PASS)
        return hits.whole_M.astype(float) if TASKS[name].measure == "whole" else hits.share_M

    def _kept(
        self, beside: Path, measured_on: Sequence[object], measure: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays that `measure` gives, now or when they were first asked for."""
        key = digest_json(measured_on).removeprefix("sha256:")[:8]
        folder = beside.with_name(f"{beside.name}-{key}")
        if not (folder / _SCORES_NAME).is_file():
            arrays = measure()
            with staged_folder(folder, overwrite=False) as staged:
                np.savez(staged / _SCORES_NAME, allow_pickle=False, **arrays)
        with np.load(folder / _SCORES_NAME, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
