"""Which rows each step sees: a pure function of the seed and the step, so that resuming is exact.

Domain rows and general rows each go through their split in an order shuffled anew every epoch. Nothing
is kept between steps, so there is no data position to save and none to lose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from blockexpand.corpus.dataset import Corpus, TokenRows, open_corpus
from blockexpand.corpus.tokens import tokenizer_digest
from blockexpand.errors import TrainingError
from blockexpand.numerics.forward import RowBatch
from blockexpand.training.settings import SELF, TrainSettings

_DOMAIN, _GENERAL, _VALIDATION = 0, 1, 2  # streams of random numbers, apart from each other


def shuffled(num_rows: int, start: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """Rows `start` to `start + count` of an endless sequence of shuffled epochs over `num_rows` rows."""
    draws = np.arange(start, start + count)
    epochs = draws // num_rows
    result = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(num_rows)
        mine = epochs == epoch
        result[mine] = order[draws[mine] % num_rows]
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass takes."""

    batch: RowBatch
    num_domain_rows: int
    """The first rows are the domain's, the rest general."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The rows of a run."""

    settings: TrainSettings
    domain: TokenRows
    general: TokenRows | None
    validation: dict[str, TokenRows]
    """`domain`, and `general` where there is one: what the run steers by."""
    largest_token: int
    """The largest token id in any of them."""
    device: torch.device

    def passes(self, step: int) -> list[Pass]:
        """The forward passes of a step, each at most `rows_per_pass` rows."""
        settings = self.settings
        parts = [(self.domain, settings.num_domain_rows, _DOMAIN)]
        if self.general is not None and settings.num_general_rows:
            parts.append((self.general, settings.num_general_rows, _GENERAL))
        rows: list[tuple[TokenRows, int]] = []
        for split, count, stream in parts:
            chosen = shuffled(split.num_rows, step * count, count, (settings.seed, stream))
            rows.extend((split, int(index)) for index in chosen)
        size = settings.rows_per_pass
        return [self._pass(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _pass(self, rows: list[tuple[TokenRows, int]]) -> Pass:
        arrays = []
        num_domain_rows = 0
        for split in (self.domain, self.general):
            chosen = np.array([index for owner, index in rows if owner is split], dtype=np.int64)
            if split is self.domain:
                num_domain_rows = len(chosen)
            if split is not None and len(chosen):
                arrays.append((split.tokens_NT(chosen), split.positions_NT(chosen), split.trained_NT(chosen)))
        tokens, positions, trained = (np.concatenate(part) for part in zip(*arrays, strict=True))
        return Pass(batch=RowBatch.of(tokens, positions, trained, self.device), num_domain_rows=num_domain_rows)

    def validation_batches(self, name: str) -> Iterator[RowBatch]:
        """A fixed sample of the validation split of `domain` or `general`, the same at every step and seed."""
        split = self.validation[name]
        order = shuffled(split.num_rows, 0, split.num_rows, (0, _VALIDATION))
        chosen = order[: self.settings.data.validation_rows]
        for start in range(0, len(chosen), self.settings.rows_per_pass):
            part = chosen[start : start + self.settings.rows_per_pass]
            yield RowBatch.of(split.tokens_NT(part), split.positions_NT(part), split.trained_NT(part), self.device)


def open_data(settings: TrainSettings, device: torch.device) -> RunData:
    """Open the prepared folders that a run names.

    Raises:
        CorpusError: a folder or split is missing or damaged.
        TrainingError: a folder was made with another tokenizer, or rows of another length.
    """
    data = settings.data
    domain = open_corpus(data.domain)
    corpora = {"domain": domain}
    if data.general is not None:
        corpora["general"] = open_corpus(general_folder(settings))
    for corpus in corpora.values():
        _check_fits(corpus, settings.model, domain.record.row_tokens)
    steering = data.validation_rows > 0
    return RunData(
        settings=settings,
        domain=domain.rows(data.domain_split),
        general=corpora["general"].rows(data.general_split) if settings.num_general_rows else None,
        validation={n: c.rows(data.validation_split) for n, c in corpora.items()} if steering else {},
        largest_token=max(split.largest_token for c in corpora.values() for split in c.record.splits.values()),
        device=device,
    )


def general_folder(settings: TrainSettings) -> Path:
    """Where the general text of a run is: the folder named, or the run's own that the base is to write."""
    assert settings.data.general is not None, "the run has no general text"
    return Path(settings.out) / "self-text" if settings.data.general == SELF else Path(settings.data.general)


def _check_fits(corpus: Corpus, model_folder: str, row_tokens: int) -> None:
    if corpus.record.tokenizer_digest != tokenizer_digest(model_folder):
        raise TrainingError(
            f"{corpus.folder} was prepared with another tokenizer than the one in {model_folder} "
            f"({corpus.record.tokenizer_digest[:19]}... is not {tokenizer_digest(model_folder)[:19]}...); prepare it "
            "again with this model's"
        )
    if corpus.record.row_tokens != row_tokens:
        raise TrainingError(
            f"{corpus.folder} has rows of {corpus.record.row_tokens} tokens, the domain's have {row_tokens}; prepare "
            "both with the same row_tokens"
        )
