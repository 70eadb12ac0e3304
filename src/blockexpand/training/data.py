"""Which rows each step sees, and in which process: pure functions of the seed and the step, so that resuming is exact.

Domain rows and general rows each go through their split in an order shuffled anew every epoch. Nothing is kept
between steps, so there is no data position to save and none to lose. Of several processes every one knows what the
others have without asking. All rows have the same number of tokens; they differ in attention, which for a row is the
sum of its documents' squared lengths, and by that they are dealt out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus
from blockexpand.corpus.tokenizer import tokenizer_digest
from blockexpand.errors import TrainingError
from blockexpand.live.forward import RowBatch
from blockexpand.live.generation import CONTEXT_KEYS
from blockexpand.records.run import REPLAY, SELF, TrainSettings
from blockexpand.training.processes import World

SELF_TEXT = "self-text"
"""The folder, in a run's, of text that the base wrote."""
_DOMAIN, _GENERAL, _VALIDATION = 0, 1, 2  # streams of random numbers, apart from each other


def shuffled(num_rows: int, start: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """Rows `start` to `start + count` of an endless sequence of shuffled epochs over `num_rows` rows."""
    draws = np.arange(start, start + count)
    epochs = draws // num_rows
    result = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        result[mine] = _epoch(num_rows, seed, int(epoch))[draws[mine] % num_rows]
    return result


@functools.lru_cache(maxsize=8)  # of two splits, the epoch that ends and the one that begins; and of what is measured
def _epoch(num_rows: int, seed: tuple[int, int], epoch: int) -> np.ndarray:
    """The order of all rows in one epoch: made once, not at every step (0.06 s of 2 M rows)."""
    return np.random.default_rng([*seed, epoch]).permutation(num_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass takes."""

    batch: RowBatch
    num_domain_rows: int
    """The first rows are the domain's, the rest general."""
    num_domain_places: int
    """So many of the places that count are the domain's, the first ones."""
    has_general: bool
    """Whether this pass has general rows in any process of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The rows of a run."""

    settings: TrainSettings
    domain: TokenRows
    general: TokenRows | None
    validation: dict[str, TokenRows]
    """`domain`, and `general` where there is one: what the run steers by."""
    world: World

    def passes(self, step: int) -> list[Pass]:
        """This process's forward passes of a step, each at most `rows_per_pass` rows; as many in every process.

        A process that has no rows left for a pass repeats a row in it of which nothing counts: all must take
        part when parameters are gathered.
        """
        shares = self.shares(step)
        size = self.settings.rows_per_pass
        starts = range(0, max(map(len, shares)), size)
        passes = []
        for start in starts:
            parts = [share[start : start + size] for share in shares]
            has_general = any(split is self.general for part in parts for split, _ in part)
            passes.append(self._pass(parts[self.world.rank], has_general))
        return passes

    def shares(self, step: int) -> list[list[tuple[TokenRows, int]]]:
        """The rows of a step for each process of the run, its domain rows first."""
        settings, num_processes = self.settings, self.world.size
        domain = self._drawn(self.domain, step, settings.num_domain_rows, _DOMAIN)
        general = self._drawn(self.general, step, settings.num_general_rows, _GENERAL)
        if num_processes == 1:
            return [domain + general]
        hands = deal(_costs(general), _costs(domain), num_processes)
        return [[domain[i] for i in of_domain] + [general[i] for i in of_general] for of_general, of_domain in hands]

    def _drawn(self, split: TokenRows | None, step: int, count: int, stream: int) -> list[tuple[TokenRows, int]]:
        if split is None or not count:
            return []
        chosen = shuffled(split.num_rows, step * count, count, (self.settings.seed, stream))
        return [(split, int(index)) for index in chosen]

    def _pass(self, rows: list[tuple[TokenRows, int]], has_general: bool) -> Pass:
        if not rows:
            idle = _idle(self.domain, self.world.device)
            return Pass(batch=idle, num_domain_rows=1, num_domain_places=0, has_general=has_general)
        arrays = []
        num_domain_rows = 0
        for split in (self.domain, self.general):
            chosen = np.array([index for owner, index in rows if owner is split], dtype=np.int64)
            if split is self.domain:
                num_domain_rows = len(chosen)
            if split is not None and len(chosen):
                arrays.append((split.tokens_NT(chosen), split.positions_NT(chosen), split.trained_NT(chosen)))
        tokens, positions, trained = (np.concatenate(part) for part in zip(*arrays, strict=True))
        batch = RowBatch.of(tokens, positions, trained, self.world.device)
        places = sum(batch.counts_B[:num_domain_rows])
        return Pass(batch=batch, num_domain_rows=num_domain_rows, num_domain_places=places, has_general=has_general)

    def validation_batches(self, name: str) -> Iterator[RowBatch]:
        """This process's part of a fixed sample of the validation split of `domain` or `general`.

        The sample is the same at every step and seed, and there are as many batches in every process.
        """
        split, size = self.validation[name], self.settings.rows_per_pass
        order = shuffled(split.num_rows, 0, split.num_rows, (0, _VALIDATION))
        chosen = order[: self.settings.data.validation_rows]
        mine = chosen[self.world.rank :: self.world.size]
        for start in range(0, -(-len(chosen) // self.world.size), size):
            part = mine[start : start + size]
            yield _batch(split, part, self.world.device) if len(part) else _idle(split, self.world.device)


def _costs(rows: list[tuple[TokenRows, int]]) -> list[int]:
    """What attention costs in each of some rows of one split."""
    if not rows:
        return []
    indices = np.array([index for _, index in rows], dtype=np.int64)
    return [attention_cost(lengths) for lengths in rows[0][0].lengths(indices)]


def _batch(split: TokenRows, rows: np.ndarray, device: torch.device) -> RowBatch:
    return RowBatch.of(split.tokens_NT(rows), split.positions_NT(rows), split.trained_NT(rows), device)


def _idle(split: TokenRows, device: torch.device) -> RowBatch:
    """A row of which nothing counts."""
    row = np.array([0])
    tokens_1T = split.tokens_NT(row)
    return RowBatch.of(tokens_1T, split.positions_NT(row), np.zeros(tokens_1T.shape, dtype=bool), device)


def open_data(settings: TrainSettings, world: World) -> RunData:
    """Open the prepared folders that a run names.

    Raises:
        CorpusError: a folder or split is missing or damaged.
        TrainingError: a folder was made with another tokenizer, or rows of another length, or does not fit the model.
    """
    data, corpora = settings.data, open_corpora(settings)
    if settings.general == SELF:
        corpora["general"] = open_corpus(general_folder(settings))
    steering = data.validation_rows > 0
    general = _general_rows(corpora["general"], data.general_split) if settings.num_general_rows else None
    return RunData(
        settings=settings,
        domain=corpora["domain"].rows(data.domain_split),
        general=general,
        validation={n: c.rows(data.validation_split) for n, c in corpora.items()} if steering else {},
        world=world,
    )


def open_corpora(settings: TrainSettings) -> dict[str, Corpus]:
    """The prepared folders that a run is given, `domain` and `general`, each held against its model.

    Raises:
        CorpusError: a folder is missing or damaged.
        TrainingError: it was made with another tokenizer, or rows of another length, or does not fit the model.
    """
    corpora = {"domain": open_corpus(settings.data.domain)}
    if settings.general not in (None, SELF):
        corpora["general"] = open_corpus(general_folder(settings))
    checkpoint = open_checkpoint(settings.model)
    for corpus in corpora.values():
        _check_tokenizer(corpus, settings.model, corpora["domain"].record.row_tokens)
        _check_sizes(corpus, checkpoint)
    return corpora


def _check_sizes(corpus: Corpus, checkpoint: Checkpoint) -> None:
    """By the text settings of config.json, whatever the family: nothing is loaded."""
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) else checkpoint.config
    embeddings = config.get("vocab_size")
    largest = max((split.largest_token for split in corpus.record.splits.values()), default=0)
    if isinstance(embeddings, int) and largest >= embeddings:
        raise TrainingError(
            f"the tokenizer does not fit the model: {corpus.folder} holds token {largest}, and {checkpoint.source} has "
            f"embeddings for {embeddings}; use the tokenizer the model was trained with"
        )
    positions = min((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), default=None)
    if positions is not None and corpus.record.row_tokens > positions:
        raise TrainingError(
            f"rows of {corpus.record.row_tokens} tokens are longer than the {positions} positions of "
            f"{checkpoint.source}; prepare the data with fewer row_tokens"
        )


def _general_rows(corpus: Corpus, split: str) -> TokenRows:
    """What is rehearsed: folders that `prepare` makes without a recipe have no `replay`, but `train`."""
    return corpus.rows("train" if split == REPLAY and REPLAY not in corpus.record.splits else split)


def general_folder(settings: TrainSettings) -> Path:
    """Where the general text of a run is: the folder named, or the run's own that the base is to write."""
    assert settings.general is not None, "the run has no general text"
    return Path(settings.out) / SELF_TEXT if settings.general == SELF else Path(settings.general)


def _check_tokenizer(corpus: Corpus, model_folder: str, row_tokens: int) -> None:
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


def attention_cost(lengths: Sequence[int]) -> int:
    """What a row's attention costs, in pairs of tokens (the causal half's factor left out)."""
    return sum(length * length for length in lengths)


def deal(general: Sequence[int], domain: Sequence[int], size: int) -> list[tuple[list[int], list[int]]]:
    """Which general and which domain rows each of `size` processes takes.

    Args:
        general: The attention cost of each general row of the step.
        domain: The same of each domain row.
        size: How many processes there are.

    Returns:
        For each process the indices of its general and its domain rows, rising. Numbers of rows differ by
        at most one, first of the general rows (which may need a second pass for the base's answer), then
        of all; within that the costliest row left goes to the process with the least cost so far.
    """
    loads, held = [0] * size, [0] * size
    mine_general = _dealt(general, len(general), held, loads)
    mine_domain = _dealt(domain, len(general) + len(domain), held, loads)
    assert sum(held) == len(general) + len(domain), f"{held} rows dealt of {len(general)} and {len(domain)}"
    return list(zip(mine_general, mine_domain, strict=True))


def _dealt(costs: Sequence[int], num_rows: int, held: list[int], loads: list[int]) -> list[list[int]]:
    """Longest processing time first (Graham 1969) until `num_rows` are held, evenly; adds to `held` and `loads`."""
    size = len(held)
    least, num_longer = divmod(num_rows, size)
    hands: list[list[int]] = [[] for _ in range(size)]
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        longer_left = sum(count > least for count in held) < num_longer
        free = (rank for rank in range(size) if held[rank] < least + longer_left)
        chosen = min(free, key=lambda rank: (loads[rank], rank))
        hands[chosen].append(row)
        held[chosen] += 1
        loads[chosen] += costs[row]
    return [sorted(hand) for hand in hands]
