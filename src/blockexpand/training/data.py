"""Which rows each step sees, and in which process: pure functions of the seed and the step, so that resuming is exact.

Domain rows and general rows each go through their split in an order shuffled anew every epoch. Nothing is kept
between steps, so there is no data position to save and none to lose. Of several processes every one knows what the
others have without asking. All rows have the same number of tokens; they differ in attention, which for a row is the
sum of its documents' squared lengths, and by that they are dealt out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
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
from blockexpand.staging import RECORD_NAME
from blockexpand.training.budget import LEAST_DOCUMENTS
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
    validation: dict[str, HeldOut]
    """`domain`, and each kind of general text: what the run steers by."""
    world: World
    calibration: dict[str, HeldOut] = dataclasses.field(default_factory=dict)
    """Of each kind of general text, where there is a budget: what it is tested on, and nothing was steered by."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Some rows of one kind of text, in a fixed order, and which document each of their tokens is of."""

    rows: TokenRows
    chosen_K: np.ndarray
    """The rows' numbers."""
    documents_KT: np.ndarray
    """The document of each token, 0 to N - 1; -1: it counts in none."""
    tokens_N: np.ndarray
    """How many tokens of each document count."""

    def batches(self, size: int, world: World) -> Iterator[tuple[RowBatch, np.ndarray]]:
        """This process's rows, `size` at a time, and the documents of the tokens that count, in their order.

        There are as many batches in every process.
        """
        mine = np.arange(len(self.chosen_K))[world.rank :: world.size]
        for start in range(0, -(-len(self.chosen_K) // world.size), size):
            part = mine[start : start + size]
            if not len(part):
                yield _idle(self.rows, world.device), np.empty(0, dtype=np.int64)
                continue
            chosen, documents_BT = self.chosen_K[part], self.documents_KT[part]
            tokens_BT, positions_BT = self.rows.tokens_NT(chosen), self.rows.positions_NT(chosen)
            batch = RowBatch.of(tokens_BT, positions_BT, documents_BT >= 0, world.device)
            yield batch, documents_BT[documents_BT >= 0]

    @property
    def num_documents(self) -> int:
        """Documents of which a token counts."""
        return len(self.tokens_N)


def held_out(rows: TokenRows, chosen_K: np.ndarray, without: Collection[int] = ()) -> HeldOut:
    """The documents in some rows, those `without` left out; of a document that goes on elsewhere, what is here."""
    trained_KT = rows.trained_NT(chosen_K)
    trained_KT[:, 0] = False  # nothing stands before it in its row
    found_KT = np.full(trained_KT.shape, -1, dtype=np.int64)
    for row, (lengths, documents) in enumerate(zip(rows.lengths(chosen_K), rows.documents(chosen_K), strict=True)):
        found_KT[row, : sum(lengths)] = np.repeat(documents, lengths)
    found_KT[~trained_KT | np.isin(found_KT, np.array(sorted(without), dtype=np.int64))] = -1
    names, numbers = np.unique(found_KT, return_inverse=True)
    numbers_KT = numbers.reshape(found_KT.shape) - int(-1 in names)
    counts_N = np.bincount(numbers_KT[numbers_KT >= 0], minlength=len(names) - int(-1 in names))
    return HeldOut(rows=rows, chosen_K=chosen_K, documents_KT=numbers_KT, tokens_N=counts_N)


_SHARE_OF_RUN = 0.03
"""Rows that test the budget over rows trained: a row is read six times at most, and trained in three passes' time."""
_ENOUGH_DOCUMENTS = 100


def _calibration(rows: TokenRows, steering: int, wanted: int | None, trained: int) -> HeldOut:
    """Documents of the split of which nothing stands in its steering rows, of as many rows as a run can pay for."""
    order = shuffled(rows.num_rows, 0, rows.num_rows, (0, _VALIDATION))
    seen = {document for documents in rows.documents(order[:steering]) for document in documents}
    found: set[int] = set()
    chosen = []
    for row in order[steering:]:
        enough = len(chosen) >= wanted if wanted else len(chosen) >= _SHARE_OF_RUN * trained
        if enough and (wanted or len(found) >= _ENOUGH_DOCUMENTS):
            break
        new = set(rows.documents(row[None])[0]) - seen
        if new:
            found |= new
            chosen.append(row)
    return held_out(rows, np.array(chosen, dtype=np.int64), seen)


def _costs(rows: list[tuple[TokenRows, int]]) -> list[int]:
    """What attention costs in each of some rows of one split."""
    if not rows:
        return []
    indices = np.array([index for _, index in rows], dtype=np.int64)
    return [attention_cost(lengths) for lengths in rows[0][0].lengths(indices)]


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
        corpora |= {kind: open_corpus(folder) for kind, folder in own_folders(settings).items()}
    kinds = [kind for kind in corpora if kind != "domain"]
    rehearsed = [_general_rows(corpora[kind], data.general_split) for kind in kinds]
    validation, calibration = {}, {}
    if data.validation_rows > 0:
        splits = {kind: corpus.rows(data.validation_split) for kind, corpus in corpora.items()}
        validation = {kind: held_out(rows, _steering(rows, data.validation_rows)) for kind, rows in splits.items()}
    if settings.retention.forgetting_budget is not None:
        num_trained = settings.num_steps(corpora["domain"].record.row_tokens) * settings.rows_per_step
        for kind in kinds:
            rows = validation[kind].rows
            calibration[kind] = _calibration(rows, data.validation_rows, data.calibration_rows, num_trained)
            _check_documents(kind, corpora[kind], calibration[kind], data.validation_rows)
    return RunData(
        settings=settings,
        domain=corpora["domain"].rows(data.domain_split),
        general=functools.reduce(TokenRows.beside, rehearsed) if settings.num_general_rows else None,
        validation=validation,
        calibration=calibration,
        world=world,
    )


def _steering(rows: TokenRows, count: int) -> np.ndarray:
    """The rows that a run steers by: the same at every step and seed."""
    return shuffled(rows.num_rows, 0, rows.num_rows, (0, _VALIDATION))[:count]


def _check_documents(kind: str, corpus: Corpus, found: HeldOut, steering: int) -> None:
    """Refuse, before anything is trained, a budget that could not be promised whatever came out."""
    if found.num_documents < LEAST_DOCUMENTS:
        raise TrainingError(
            f"a budget on {kind} text cannot be promised: the validation split of {corpus.folder} has "
            f"{found.num_documents} documents that are in none of the {steering} rows it steers by, and a bound takes "
            f"{LEAST_DOCUMENTS}; give more general text or a larger share of it for validation, or leave the budget out"
        )


def open_corpora(settings: TrainSettings) -> dict[str, Corpus]:
    """The prepared folders that a run is given, `domain` and kinds of general text, each held against its model.

    Raises:
        CorpusError: a folder is missing or damaged.
        TrainingError: it was made with another tokenizer, or rows of another length, or does not fit the model.
    """
    corpora = {"domain": open_corpus(settings.data.domain)}
    corpora |= {kind: open_corpus(folder) for kind, folder in general_folders(settings).items()}
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


PROSE, CHATS = "own prose", "own chats"
"""What a base writes itself, as it is called in the budget's statement."""
OWN = frozenset({PROSE, CHATS})


def self_folder(settings: TrainSettings, kind: str) -> Path:
    """Where a kind of text is that the base writes for a run."""
    return Path(settings.out) / SELF_TEXT / kind.removeprefix("own ")


def own_folders(settings: TrainSettings) -> dict[str, Path]:
    """The kinds of text that the base has written for a run."""
    own = {kind: self_folder(settings, kind) for kind in (PROSE, CHATS)}
    return {kind: folder for kind, folder in own.items() if (folder / RECORD_NAME).is_file()}


def general_folders(settings: TrainSettings) -> dict[str, Path]:
    """The folders of general text that a run was given, by kind, the first one first."""
    data = settings.data
    first = {} if settings.general in (None, SELF) else {data.general_kind: Path(str(settings.general))}
    return first | {kind: Path(folder) for kind, folder in data.more_general.items()}


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
