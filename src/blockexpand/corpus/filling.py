"""The first half of `prepare`: sources into tokens on disk, each document's fate decided and counted in order.

In: a recipe and a spool that may hold an earlier run's work. Out: the tokens of every split and source, and a journal.
Documents are looked at and encoded by other processes, several batches ahead; what happens to them is decided
here, one after the other, so the result does not depend on how many processes there are. Refused: records that
cannot be read, beyond the budget; files that changed half-way.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np

from blockexpand.corpus.documents import Bad, Document, split_at
from blockexpand.corpus.duplicates import Seen
from blockexpand.corpus.reading import Item, Part, inputs_digest, parts_of, read_part
from blockexpand.corpus.recipe import PrepareRecipe
from blockexpand.corpus.sources import title_of
from blockexpand.corpus.spool import Journal, SourceState, Spool
from blockexpand.corpus.worker import Look, Tokens
from blockexpand.corpus.workers import Workers
from blockexpand.errors import CorpusError
from blockexpand.progress import Bar, bar

_BATCH_DOCUMENTS = 256
_BATCH_CHARS = 500_000
_COMMIT_TOKENS = 1 << 23
"""Half a minute of work on two cores: what a kill costs at most."""
_COMMIT_RECORDS = 1 << 16
_QUOTED = 5
"""So many examples of each kind are written down."""
_BUDGET_FROM = 1000


@dataclasses.dataclass(kw_only=True)
class _Batch:
    """Records of one source that go through together, and where reading stands behind them."""

    source: int
    items: list[Item]
    part: int
    item: int
    num_bytes: float
    """Of the source's files, read by then."""
    fates: list[str] = dataclasses.field(default_factory=list)
    """Of each document: a split as `=train`, or why it is dropped."""
    notes: list[str] = dataclasses.field(default_factory=list)
    looks: list[Look] = dataclasses.field(default_factory=list)
    seen_sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def documents(self) -> list[Document]:
        return [item for item in self.items if isinstance(item, Document)]


class Filling:
    """Everything that is in memory while the sources are read."""

    def __init__(self, recipe: PrepareRecipe, spool: Spool, journal: Journal, seen: Seen) -> None:
        """Go on from a journal, to whose lengths the spool was cut."""
        self._recipe, self._spool, self._seen = recipe, spool, seen
        self._shares = {name: split.share for name, split in recipe.splits.items()}
        self._wanted = [name for name, split in recipe.splits.items() if split.write]
        self.journal = journal
        """Where everything stands behind the last batch that is done with."""
        self._tokens = Counter(journal.tokens)
        self._uncommitted = [0, 0]  # tokens, records

    def run(self, workers: Workers) -> Journal:
        """Read what is left of the sources."""
        for number in range(self.journal.source, len(self._recipe.sources)):
            self._read_source(number, workers)
        return self.journal

    # --- limits -----------------------------------------------------------------------------------------

    def _full(self, split: str, source: int) -> bool:
        """Whether a split takes no more of a source."""
        recipe = self._recipe
        limit = recipe.splits[split].max_tokens
        if limit is None:
            return False
        if not recipe.weights_hold(split):
            return sum(self._tokens[f"{split}.{n}"] for n in range(len(recipe.sources))) >= limit
        shares = [s.share for s in recipe.sources]
        share = shares[source]
        # Epochs are of all that a source has; of a share, more than that part of the limit is never needed.
        return None not in shares and share is not None and self._tokens[f"{split}.{source}"] >= share * limit

    def _all_full(self, source: int) -> bool:
        return all(self._full(split, source) for split in self._wanted)

    # --- one source -------------------------------------------------------------------------------------

    def _read_source(self, number: int, workers: Workers) -> None:
        source = self._recipe.sources[number]
        parts = parts_of(source)
        self._begin(number, inputs_digest(parts), parts)
        looks: deque[tuple[_Batch, Future[list[Look]]]] = deque()
        tokens: deque[tuple[_Batch, Future[Tokens]]] = deque()
        total = sum(part.num_bytes for part in parts)
        with bar(f"read {title_of(source)}", total, "B" if total else "documents") as progress:
            take = self._taker(progress, by_bytes=total > 0)
            for batch in self._batches(number, parts):
                looks.append((batch, workers.look(number, batch.documents)))
                if len(looks) > workers.num_at_once:
                    tokens.append(self._decided(*looks.popleft(), workers))
                if len(tokens) > workers.num_at_once and not take(*tokens.popleft()):
                    break
            else:
                tokens.extend(self._decided(*looked, workers) for looked in looks)
                all(take(*encoded) for encoded in tokens)
        self._check_budget(number, at_end=True)
        self.journal = dataclasses.replace(self.journal, source=number + 1, part=0, item=0)

    def _begin(self, number: int, inputs: str, parts: list[Part]) -> None:
        journal = self.journal
        if number < len(journal.sources):
            if journal.sources[number].inputs != inputs:
                raise CorpusError(
                    f"the files of {title_of(self._recipe.sources[number])} have changed since {self._spool.folder} "
                    "was begun; begin anew with --overwrite"
                )
            return
        counts = {"files": len(parts), "file_bytes": sum(part.num_bytes for part in parts)}
        state = SourceState(inputs=inputs, counts=counts)
        self.journal = dataclasses.replace(journal, sources=(*journal.sources, state))

    def _batches(self, number: int, parts: list[Part]) -> Iterator[_Batch]:
        source = self._recipe.sources[number]
        first_part = self.journal.part
        before = float(sum(part.num_bytes for part in parts[:first_part]))
        batch = _Batch(source=number, items=[], part=first_part, item=0, num_bytes=before)
        num_chars = 0
        for at in range(first_part, len(parts)):
            item = self.journal.item if at == first_part else 0
            start = item
            for found, share in read_part(source, parts[at], start):
                item += 1
                batch.items.append(found)
                batch.part, batch.item, batch.num_bytes = at, item, before + share * parts[at].num_bytes
                num_chars += len(found.text) if isinstance(found, Document) else 0
                if len(batch.items) >= _BATCH_DOCUMENTS or num_chars >= _BATCH_CHARS:
                    yield batch
                    batch = dataclasses.replace(batch, items=[], fates=[], notes=[], looks=[], seen_sizes={})
                    num_chars = 0
            before += parts[at].num_bytes
        if batch.items:
            yield batch

    # --- what becomes of a document -----------------------------------------------------------------------

    def _decided(self, batch: _Batch, looks: Future[list[Look]], workers: Workers) -> tuple[_Batch, Future[Tokens]]:
        """Decide on a batch that was looked at, and have what stays encoded."""
        batch.looks = looks.result()
        staying = []
        for document, look in zip(batch.documents, batch.looks, strict=True):
            fate, note = self._fate(look)
            batch.fates.append(fate)
            batch.notes.append(note)
            if fate.startswith("="):
                split = self._recipe.splits[fate[1:]]
                staying.append(_cut(document, split.max_document_chars))
        batch.seen_sizes = self._seen.sizes()
        return batch, workers.encode(staying)

    def _fate(self, look: Look) -> tuple[str, str]:
        if look.drop is not None:
            rule = look.drop.rule
            return ("short" if rule == "min_chars" else f"cleaned {rule}"), f"{rule}: {look.drop.figure}"
        copy = self._seen.verdict(look.key, look.bands_B, look.signature_H)
        if copy is not None:
            return (
                copy,
                "a copy of an earlier document" if copy == "duplicate" else "a near copy of an earlier document",
            )
        if look.quote is not None:
            return "contaminated", look.quote
        split = split_at(look.position, self._shares)
        return (f"={split}", "") if self._recipe.splits[split].write else ("other", "")

    def _taker(self, progress: Bar, *, by_bytes: bool) -> Callable[[_Batch, Future[Tokens]], bool]:
        shown = 0.0

        def take(batch: _Batch, encoded: Future[Tokens]) -> bool:
            """Write a batch down; whether reading goes on."""
            nonlocal shown
            goes_on = self._take(batch, encoded.result())
            amount = batch.num_bytes - shown if by_bytes else float(len(batch.items))
            shown = max(shown, batch.num_bytes)
            progress.advance(max(amount, 0.0), f"{self._tokens.total():,} tokens")
            return goes_on

        return take

    def _take(self, batch: _Batch, encoded: Tokens) -> bool:
        """Count every record of a batch and append the tokens of those that stay; whether reading goes on."""
        state = self.journal.sources[batch.source]
        tally = _Tally(state)
        ends = np.cumsum(encoded.lengths)
        fates = iter(zip(batch.documents, batch.looks, batch.fates, batch.notes, strict=True))
        staying = 0
        goes_on = True
        for item in batch.items:
            if self._all_full(batch.source):
                goes_on = False
                break
            if isinstance(item, Bad):
                tally.read(b"")
                tally.count_bad(item.why)
                continue
            document, look, fate, note = next(fates)
            tally.read(look.key)
            if not fate.startswith("="):
                tally.count(fate, f"{document.name}: {note}")
                continue
            at, staying = staying, staying + 1
            name = f"{fate[1:]}.{batch.source}"
            if at in encoded.bad:
                tally.count_bad(encoded.bad[at])
            elif self._full(fate[1:], batch.source):
                tally.count("beyond", "")
            else:
                tally.count("kept", "")
                end = int(ends[at])
                begin = end - int(encoded.lengths[at])
                trained_A = None if encoded.trained is None else encoded.trained[begin:end]
                max_chars = self._recipe.splits[fate[1:]].max_document_chars
                num_bytes = len(_cut(document, max_chars).text.encode())
                self._spool.append(name, encoded.tokens[begin:end], num_bytes, trained_A)
                self._tokens[name] += end - begin
                self._uncommitted[0] += end - begin
        self._finish(batch, tally.state)
        return goes_on

    def _finish(self, batch: _Batch, state: SourceState) -> None:
        sources = (*self.journal.sources[: batch.source], state)
        self.journal = dataclasses.replace(
            self.journal,
            part=batch.part,
            item=batch.item,
            sources=sources,
            sizes={**self.journal.sizes, **batch.seen_sizes, **self._spool.sizes()},
            tokens=dict(self._tokens),
        )
        self._check_budget(batch.source, at_end=False)
        self._uncommitted[1] += len(batch.items)
        due = min(_COMMIT_TOKENS, self._recipe.shard_tokens)
        if self._uncommitted[0] >= due or self._uncommitted[1] >= _COMMIT_RECORDS:
            self.commit()

    def commit(self) -> None:
        """Make durable what is done."""
        self._spool.commit(self.journal, Seen.FILES)
        self._uncommitted = [0, 0]

    def _check_budget(self, number: int, *, at_end: bool) -> None:
        state, most = self.journal.sources[number], self._recipe.max_bad
        bad, read = state.counts.get("bad", 0), state.counts.get("read", 0)
        if not bad:
            return
        if most == 0:
            raise CorpusError(f"{state.bad[0]} (or allow a share of such records with max_bad)")
        if (at_end or read >= _BUDGET_FROM) and bad > most * read:
            raise CorpusError(
                f"{title_of(self._recipe.sources[number])}: {bad:,} of {read:,} records cannot be read, which is more "
                f"than max_bad {most:g}; the first: {state.bad[0]}"
            )


class _Tally:
    """The counts of a source while a batch is gone through."""

    def __init__(self, state: SourceState) -> None:
        self._before = state
        self._counts = Counter(state.counts)
        self._examples, self._bad = list(state.examples), list(state.bad)
        self._chain = bytes.fromhex(state.chain)

    def read(self, key: bytes) -> None:
        self._counts["read"] += 1
        self._chain = hashlib.blake2b(self._chain + key, digest_size=16).digest()

    def count(self, fate: str, example: str) -> None:
        self._counts[fate] += 1
        if example and self._counts[fate] <= _QUOTED and fate != "other":
            self._examples.append(example)

    def count_bad(self, why: str) -> None:
        self._counts["bad"] += 1
        if self._counts["bad"] <= _QUOTED:
            self._bad.append(why)

    @property
    def state(self) -> SourceState:
        return dataclasses.replace(
            self._before,
            chain=self._chain.hex(),
            counts=dict(self._counts),
            examples=tuple(self._examples),
            bad=tuple(self._bad),
        )


def _cut(document: Document, max_chars: int | None) -> Document:
    if max_chars is None or len(document.text) <= max_chars:
        return document
    return dataclasses.replace(document, text=document.text[:max_chars])
