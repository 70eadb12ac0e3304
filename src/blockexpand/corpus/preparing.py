"""`prepare`: a recipe of sources into a folder of packed splits.

In: a recipe (sources, splits, weights, row length) and the folder of the model whose tokenizer is used. Out: Arrow
files of each split and `blockexpand.json`, which counts what went in and what was dropped. The same inputs give the
same bytes, however often the work was interrupted. Memory does not grow with the corpus. Refused: sources that
cannot be read, a split that would be empty, an unfinished folder of other inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blockexpand import __version__
from blockexpand.corpus.decontamination import EvaluationTexts, evaluation_texts
from blockexpand.corpus.duplicates import Seen
from blockexpand.corpus.filling import Filling
from blockexpand.corpus.fingerprints import banding_for
from blockexpand.corpus.mixing import Chosen, Weight, choose, interleaved, wanted_tokens
from blockexpand.corpus.packing import Piece, packed, pieces_of
from blockexpand.corpus.recipe import PrepareRecipe, plain_source, weights_of
from blockexpand.corpus.sources import TextSource, title_of
from blockexpand.corpus.spool import Journal, SourceState, Spool, Stored, discard, locked, partial_of
from blockexpand.corpus.tokenizer import ends_of, load_tokenizer, tokenizer_digest
from blockexpand.corpus.worker import Job
from blockexpand.corpus.workers import Workers
from blockexpand.corpus.writing import Fetch, Shape, shard_name, split_counts, write_shard
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import CorpusError
from blockexpand.progress import bar, say
from blockexpand.records import from_plain, read_record, read_yaml, write_record
from blockexpand.records.corpus import CorpusRecord, MixCounts, Shard, SourceCounts, SplitCounts
from blockexpand.staging import RECORD_NAME, check_output, full_disk_is_an_error, parent_of, publish_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMMIT_TOKENS = 1 << 23
"""A smaller corpus is made again sooner than its journal is looked after."""
_MOST_DOCUMENTS = 2**31 - 1
"""Of a split: its files number them with 32 bits."""


def load_recipe(path: Path) -> PrepareRecipe:
    """The recipe of a YAML file.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    return from_plain(PrepareRecipe, read_yaml(path), str(path))


def prepare(
    recipe: PrepareRecipe,
    tokenizer: str | Path,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    workers: int | None = None,
) -> CorpusRecord:
    """Read the sources, tokenise, pack, and write the folder `out`.

    Args:
        recipe: What goes in.
        tokenizer: The folder of the model whose tokenizer is used.
        out: The folder to write; it appears whole or not at all.
        overwrite: Replace an earlier prepared folder, or an unfinished one.
        resume: Go on with what an interrupted run left in `<out>.partial`; from the beginning if there is nothing.
        workers: Processes that tokenise; as many as there are cores if not given. The result does not depend on it.

    Raises:
        CorpusError: a source cannot be read, or a split would be empty.
        StagingError: `out` is taken or cannot be written.
        KeyboardInterrupt: with words that say where the unfinished work is.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise CorpusError(f"workers is {workers}; expected 1 or more")
    loaded = load_tokenizer(tokenizer)
    partial = partial_of(out)
    if resume and (record := _finished(recipe, tokenizer, out)) is not None:
        discard(partial)
        return record
    check_output(out, overwrite)
    kept = f"What is done is kept in {partial}: go on with --resume"
    with full_disk_is_an_error(out, kept), parent_of(out), locked(partial):
        work = _Preparation(recipe, loaded, Path(tokenizer), partial)
        try:
            work.begin(overwrite=overwrite, resume=resume)
            record = work.run(workers or len(os.sched_getaffinity(0)))
            publish_folder(partial / "ready", out, overwrite)
            discard(partial)
        except KeyboardInterrupt:
            if work.interrupt():
                raise KeyboardInterrupt(f"{kept}, begin anew with --overwrite") from None
            discard(partial)
            raise
        except BaseException:
            if work.worth_keeping:
                say(kept)
            else:
                discard(partial)
            raise
    return record


def _finished(recipe: PrepareRecipe, tokenizer: str | Path, out: Path) -> CorpusRecord | None:
    """The record of the output, when it is there and of this recipe and tokenizer."""
    path = out / RECORD_NAME
    if not path.is_file():
        return None
    record = read_record(CorpusRecord, path)
    same = record.recipe_digest == digest_json(recipe) and record.tokenizer_digest == tokenizer_digest(tokenizer)
    return record if same else None


class _Preparation:
    """The work on one unfinished folder."""

    def __init__(self, recipe: PrepareRecipe, tokenizer: PreTrainedTokenizerBase, model: Path, partial: Path) -> None:
        self._recipe, self._tokenizer, self._model, self._partial = recipe, tokenizer, model, partial
        self._vocabulary = len(tokenizer)
        self._spool = Spool(partial, np.dtype(np.uint16 if self._vocabulary <= 1 << 16 else np.uint32))
        self._identity = digest_json(
            [recipe.identity(), tokenizer_digest(model), str(tokenizer.chat_template), __version__]
        )
        self._journal = Journal(identity=self._identity)
        self._filling: Filling | None = None
        self._evaluation: EvaluationTexts | None = None

    # --- beginning and ending ---------------------------------------------------------------------------

    def begin(self, *, overwrite: bool, resume: bool) -> None:
        """Find out where to begin, and cut every file to where that is.

        Raises:
            CorpusError: there is unfinished work and nobody said what to do with it, or it is of other inputs.
        """
        journal = self._spool.journal()
        if journal is not None and not resume:
            if not overwrite:
                raise CorpusError(
                    f"{self._partial} holds an unfinished prepare; go on with --resume, or begin anew with --overwrite"
                )
            (self._partial / "journal.json").unlink()
            journal = None
        if journal is not None:
            if journal.identity != self._identity:
                raise CorpusError(
                    f"{self._partial} was begun with another recipe, tokenizer or version of blockexpand "
                    f"({journal.identity[:19]}... is not {self._identity[:19]}...); give what it was begun with, or "
                    "begin anew with --overwrite"
                )
            self._journal = journal
        self._spool.rewind(self._journal)

    @property
    def worth_keeping(self) -> bool:
        """Whether a journal was written."""
        return self._spool.journal() is not None

    def interrupt(self) -> bool:
        """Save what is done, if anything is; whether it is kept."""
        if self._filling is not None and self._filling.journal.tokens:
            self._filling.commit()
        return self.worth_keeping

    # --- the work ---------------------------------------------------------------------------------------

    def run(self, num_processes: int) -> CorpusRecord:
        """Everything from the sources to the record in `ready`."""
        recipe = self._recipe
        if self._journal.source < len(recipe.sources):
            self._read(num_processes)
        elif recipe.decontaminate is not None:
            self._evaluation = evaluation_texts(recipe.decontaminate)
        self._check_splits()
        self._spool.ready.mkdir(exist_ok=True)
        splits = {name: self._pack(name) for name, split in recipe.splits.items() if split.write}
        record = CorpusRecord(
            row_tokens=recipe.row_tokens,
            tokenizer_digest=tokenizer_digest(self._model),
            vocabulary_size=self._vocabulary,
            recipe_digest=digest_json(recipe),
            conversations=recipe.conversations,
            sources=tuple(
                _source_counts(plain_source(source), state)
                for source, state in zip(recipe.sources, self._journal.sources, strict=True)
            ),
            splits=splits,
            num_evaluation_texts=0 if self._evaluation is None else len(self._evaluation.names),
            num_evaluation_texts_skipped=0 if self._evaluation is None else self._evaluation.num_skipped,
        )
        wanted = {RECORD_NAME, *(shard.name for split in splits.values() for shard in split.shards)}
        for path in self._spool.ready.iterdir():
            if path.name not in wanted:
                path.unlink()
        write_record(self._spool.ready / RECORD_NAME, record)
        return record

    def _read(self, num_processes: int) -> None:
        recipe = self._recipe
        if recipe.decontaminate is not None:
            self._evaluation = evaluation_texts(recipe.decontaminate)
        near = recipe.duplicates.near
        banding = None if near is None else banding_for(near)
        job = Job(
            tokenizer_json=self._tokenizer.backend_tokenizer.to_str(),
            ends=ends_of(self._tokenizer),
            chat_folder=str(self._model) if recipe.conversations else None,
            all_turns=recipe.trained_turns == "all",
            cleaning=tuple(source.clean for source in recipe.sources),
            min_chars=recipe.min_chars,
            place_by=recipe.split_by if len(recipe.splits) > 1 else None,
            banding=banding,
            run_words=recipe.duplicates.run_words,
            evaluation=self._evaluation,
        )
        seen = Seen(recipe.duplicates, banding[0] if banding else 0, self._partial)
        self._filling = Filling(recipe, self._spool, self._journal, seen)
        try:
            with Workers(job, num_processes) as workers:
                self._journal = self._filling.run(workers)
            if self._is_large:
                self._filling.commit()
        finally:
            seen.close()
        self._filling = None
        self._spool.close()

    def _check_splits(self) -> None:
        """Refuse an empty split before hours go into packing the others."""
        recipe, tokens = self._recipe, self._journal.tokens
        kept = sum(state.counts.get("kept", 0) for state in self._journal.sources)
        for name, split in recipe.splits.items():
            if split.write and not any(tokens.get(f"{name}.{n}") for n in range(len(recipe.sources))):
                whole = any(isinstance(source, TextSource) and not source.separator for source in recipe.sources)
                hint = " (a text file is one document, unless the recipe names its separator)" if whole else ""
                raise CorpusError(
                    f"the split {name!r} is empty: of {kept:,} documents kept{hint} none fell into its share of "
                    f"{split.share:g}; give more text or a larger share (--held-out)"
                )

    @property
    def _is_large(self) -> bool:
        return sum(self._journal.tokens.values()) >= min(_COMMIT_TOKENS, self._recipe.shard_tokens)

    # --- one split --------------------------------------------------------------------------------------

    def _pack(self, split: str) -> SplitCounts:
        recipe = self._recipe
        stored = [self._spool.stored(f"{split}.{n}") for n in range(len(recipe.sources))]
        own = [int(s.documents_D3[:, 1].sum()) for s in stored]
        weights = [
            Weight(title=title_of(source), epochs=epochs, share=share, num_tokens=tokens)
            for source, (epochs, share), tokens in zip(recipe.sources, weights_of(recipe, split), own, strict=True)
        ]
        limit = recipe.splits[split].max_tokens if recipe.weights_hold(split) else None
        wanted = wanted_tokens(weights, limit, recipe.max_epochs)
        chosen = [choose(s.documents_D3, tokens) for s, tokens in zip(stored, wanted, strict=True)]
        streams = [(c, s.documents_D3) for c, s in zip(chosen, stored, strict=True)]
        num_documents = sum(c.num_documents for c in chosen)
        if num_documents > _MOST_DOCUMENTS:
            raise CorpusError(
                f"the split {split!r} has {num_documents:,} documents; expected at most {_MOST_DOCUMENTS:,}: divide it"
            )
        rows = packed(_pieces(streams, recipe.row_tokens), recipe.row_tokens)
        with bar(f"pack {split}", sum(c.num_tokens for c in chosen), "tokens") as progress:
            shards = []
            for shard in self._shards(split, rows, _fetch(stored)):
                shards.append(shard)
                progress.advance(shard.num_tokens, f"{len(shards)} done")
        counts = split_counts(shards, recipe.row_tokens, num_documents, sum(c.num_bytes for c in chosen))
        mixed = len(recipe.sources) > 1 or recipe.weights_hold(split)
        return dataclasses.replace(counts, mix=_mix(weights, wanted, chosen) if mixed else ())

    def _shards(self, split: str, rows: Iterator[list[Piece]], fetch: Fetch) -> Iterator[Shard]:
        """The split's files; those that an earlier run finished are not written again."""
        size = self._recipe.shard_tokens // self._recipe.row_tokens
        finished = self._journal.shards.get(split, ())
        eos = ends_of(self._tokenizer).eos
        shape = Shape(row_tokens=self._recipe.row_tokens, vocabulary_size=self._vocabulary, pad=eos)
        number = 0
        while (first := next(rows, None)) is not None:
            here = itertools.chain([first], itertools.islice(rows, size - 1))
            path = self._spool.ready / shard_name(split, number)
            if number < len(finished) and path.is_file() and digest_file(path) == finished[number].digest:
                for _ in here:  # the rows behind it depend on these
                    pass
                shard = finished[number]
            else:
                shard = write_shard(path, here, shape, fetch)
                self._note(split, number, shard)
            yield shard
            number += 1

    def _note(self, split: str, number: int, shard: Shard) -> None:
        done = (*self._journal.shards.get(split, ())[:number], shard)
        self._journal = dataclasses.replace(self._journal, shards={**self._journal.shards, split: done})
        if self._is_large:
            self._spool.commit(self._journal)


def _pieces(streams: Sequence[tuple[Chosen, np.ndarray]], row_tokens: int) -> Iterator[Piece]:
    for number, (source, first, num_tokens) in enumerate(interleaved(streams)):
        yield from pieces_of(number, num_tokens, row_tokens, source, first)


def _fetch(stored: Sequence[Stored]) -> Fetch:
    def fetch(piece: Piece) -> tuple[np.ndarray, np.ndarray | None]:
        one = stored[piece.source]
        begin = piece.first + piece.start
        end = begin + piece.length
        return one.tokens[begin:end], None if one.trained is None else one.trained[begin:end]

    return fetch


def _mix(weights: Sequence[Weight], wanted: Sequence[float], chosen: Sequence[Chosen]) -> tuple[MixCounts, ...]:
    total, wanted_total = sum(c.num_tokens for c in chosen), sum(wanted)
    return tuple(
        MixCounts(
            source=weight.title,
            own_tokens=weight.num_tokens,
            num_tokens=one.num_tokens,
            wanted_epochs=round(tokens / weight.num_tokens, 6) if weight.num_tokens else 0.0,
            got_epochs=round(one.num_tokens / weight.num_tokens, 6) if weight.num_tokens else 0.0,
            wanted_share=round(tokens / wanted_total, 6),
            got_share=round(one.num_tokens / total, 6),
        )
        for weight, tokens, one in zip(weights, wanted, chosen, strict=True)
    )


def _source_counts(source: dict[str, str], state: SourceState) -> SourceCounts:
    counts = state.counts
    cleaned = {name.partition(" ")[2]: n for name, n in counts.items() if name.startswith("cleaned ")}
    parts = ("kept", "short", "duplicate", "near_duplicate", "contaminated", "other", "beyond", "bad")
    total = sum(counts.get(part, 0) for part in parts) + sum(cleaned.values())
    assert counts.get("read", 0) == total, f"documents got lost in {source}: {counts}"
    return SourceCounts(
        source=source,
        num_read=counts.get("read", 0),
        num_kept=counts.get("kept", 0),
        num_too_short=counts.get("short", 0),
        num_duplicates=counts.get("duplicate", 0),
        num_other_splits=counts.get("other", 0),
        num_beyond_limit=counts.get("beyond", 0),
        num_near_duplicates=counts.get("near_duplicate", 0),
        num_contaminated=counts.get("contaminated", 0),
        num_bad=counts.get("bad", 0),
        cleaned=dict(sorted(cleaned.items())),
        bad=state.bad,
        examples=state.examples,
        num_files=counts.get("files", 0),
        num_bytes=counts.get("file_bytes", 0),
        content_digest=state.chain,
    )
