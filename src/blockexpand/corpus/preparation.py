"""`prepare`: sources into a folder of packed splits.

In: a recipe (sources, splits, weights, row length) or paths, and the folder of the model whose tokenizer is used. Out:
Arrow files of each split and `blockexpand.json`, which counts what went in and what was dropped. First every source is
read, judged and encoded into shards; then documents are divided, mixed and packed. The same inputs give the same bytes,
however often the work was interrupted. Refused: sources that cannot be read, a split that would be empty, chats beside
texts, an unfinished folder of other inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from blockexpand import __version__
from blockexpand.corpus.chats import check_embeddings, check_template
from blockexpand.corpus.copies import EvaluationTexts, Seen, content_key, position_of
from blockexpand.corpus.files import Bad, Contents, Document, all_documents, look_into, read_documents
from blockexpand.corpus.mixture import Weight, interleave, wanted_tokens
from blockexpand.corpus.packing import Piece, pack, pieces_of
from blockexpand.corpus.recipe import PrepareRecipe, Source, make_recipe
from blockexpand.corpus.rows import Shape, split_counts, write_shard
from blockexpand.corpus.shards import Shards, ShardWriter, SourceState, StoredTokens, locked
from blockexpand.corpus.splits import ENOUGH_DOCUMENTS, GAP_TOKENS, can_be_cut, spans_of, split_documents
from blockexpand.corpus.tokenizer import Encoded, Encoder, embeddings_of, ends_of, load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_json
from blockexpand.errors import CorpusError
from blockexpand.progress import Bar, bar, say
from blockexpand.records import read_json, read_record, write_json, write_record
from blockexpand.records.corpus import CorpusRecord, MixCounts, SourceCounts, SplitCounts
from blockexpand.staging import RECORD_NAME, check_output, full_disk_is_an_error, parent_of, publish_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# D = documents of all sources, in their order.

_SHARD_TOKENS = 1 << 23
"""Half a minute of work: what a kill costs at most."""
_FILE_TOKENS = 1 << 26
"""Of an Arrow file, at most: about 140 MB."""
_BATCH_DOCUMENTS = 256
_BATCH_CHARS = 500_000
_BUDGET_FROM = 1000
_NOTHING = Encoded(tokens_A=np.zeros(0, dtype=np.int64), trained_A=np.zeros(0, dtype=bool))


def prepare(
    sources: PrepareRecipe | str | Path | Source | Sequence[str | Path | Source],
    tokenizer: str | Path,
    out: str | Path,
    *,
    row_tokens: int | None = None,
    held_out: float | None = None,
    max_bad: float | None = None,
    trained_turns: Literal["assistant", "all"] | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> CorpusRecord:
    """Read the sources, tokenise, pack, and write the folder `out`.

    Args:
        sources: A recipe; or files, folders, globs, data sets of the hub, `Source`s, which `make_recipe` makes one of
            with the four settings that follow.
        tokenizer: The folder of the model whose tokenizer is used.
        out: The folder to write; it appears whole or not at all.
        row_tokens: Length of a packed row, in tokens; 1024 if not given.
        held_out: The share of the documents for each of `validation` and `test`; 0.02 if not given, 0 = neither.
        max_bad: The share of a source's records that may be unreadable; 0 if not given.
        trained_turns: Of chats, which turns are trained; the assistant's if not given.
        overwrite: Replace an earlier prepared folder, or an unfinished one.
        resume: Go on with what an interrupted run left in `<out>.partial`; from the beginning if there is nothing, and
            not at all when `out` was finished from the same inputs.

    Raises:
        CorpusError: a source cannot be read, or a split would be empty.
        RecordError: a setting is out of bounds.
        StagingError: `out` is taken or cannot be written.
        KeyboardInterrupt: with words that say where the unfinished work is.
    """
    given: dict[str, Any] = {
        "row_tokens": row_tokens,
        "held_out": held_out,
        "max_bad": max_bad,
        "trained_turns": trained_turns,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if isinstance(sources, PrepareRecipe) and settings:
        raise CorpusError(f"{', '.join(settings)} beside a recipe; expected it in the recipe: set it there")
    recipe = sources if isinstance(sources, PrepareRecipe) else make_recipe(sources, **settings)
    out = Path(out)
    partial = out.with_name(f"{out.name}.partial")
    work = _Preparation(recipe, load_tokenizer(tokenizer), Path(tokenizer), partial)
    if resume and (out / RECORD_NAME).is_file():
        record = read_record(CorpusRecord, out / RECORD_NAME)
        if record.inputs_digest == work.identity:
            shutil.rmtree(partial, ignore_errors=True)
            return record
    check_output(out, overwrite)
    kept = f"What is done is kept in {partial}: go on with --resume"
    with full_disk_is_an_error(out, kept), parent_of(out), locked(partial):
        try:
            work.begin(overwrite=overwrite, resume=resume)
            record = work.run()
            publish_folder(partial / "ready", out, overwrite)
            shutil.rmtree(partial, ignore_errors=True)
        except BaseException as error:
            if not work.is_worth_keeping:
                shutil.rmtree(partial, ignore_errors=True)
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"{kept}, begin anew with --overwrite") from None
            else:
                say(kept)
            raise
    return record


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What becomes of a document: why it is dropped, or nothing."""

    document: Document
    key: int
    drop: str = ""
    note: str = ""
    position: float = 0.0
    signature: np.ndarray | None = None


class _Batch(NamedTuple):
    """Records that go through together."""

    records: list[_Verdict | Bad]
    encoded: Future[list[Encoded | CorpusError]]
    """The tokens of those that stay."""
    part: int
    item: int
    """Of the part: how many records lie behind."""
    share: float
    """Of the part that lies behind."""


class _Preparation:
    """The work on one unfinished folder."""

    def __init__(self, recipe: PrepareRecipe, tokenizer: PreTrainedTokenizerBase, model: Path, partial: Path) -> None:
        self._recipe, self._tokenizer, self._model, self._partial = recipe, tokenizer, model, partial
        self._encoder = Encoder(tokenizer, all_turns=recipe.trained_turns == "all")
        self._num_embeddings = embeddings_of(model)
        self._contents = [look_into(source) for source in recipe.sources]
        self._chats = self._contents[0].kind == "chat"
        for one in self._contents:
            if (one.kind == "chat") != self._chats:
                kinds = ", ".join(f"{c.source.path} ({c.kind})" for c in self._contents)
                raise CorpusError(f"chats and texts cannot be in one corpus: {kinds}; prepare them apart")
            if one.kind == "text" and one.separator is None:
                say(f"{one.source.path}: documents begin at blank lines")
        if self._chats:
            check_template(tokenizer)
        elif recipe.trained_turns == "all":
            raise CorpusError("trained_turns is all; expected it with chats only: of a text every token is trained")
        inputs = [one.digest() for one in self._contents]
        self.identity = digest_json(
            [recipe.identity(), tokenizer_digest(model), str(tokenizer.chat_template), __version__, inputs]
        )
        self._seen = Seen(recipe.near_copies)
        self._evaluation: EvaluationTexts | None = None
        self._tokens: Counter[str] = Counter()
        """Encoded so far, of each split by its share."""
        self._num_documents = 0
        self._borders = np.cumsum([split.share for split in recipe.splits.values()])[:-1]

    def begin(self, *, overwrite: bool, resume: bool) -> None:
        """Go on with what is there, or begin.

        Raises:
            CorpusError: there is unfinished work and nobody said what to do with it, or it is of other inputs.
        """
        begun = self._partial / "begun.json"
        if begun.is_file() and resume:
            earlier = read_json(begun)
            if earlier != {"identity": self.identity}:
                raise CorpusError(
                    f"{self._partial} was begun with other sources, another recipe, tokenizer or version; "
                    "give what it was begun with, or begin anew with --overwrite"
                )
        elif begun.is_file() and not overwrite:
            raise CorpusError(
                f"{self._partial} holds an unfinished prepare; go on with --resume, or begin anew with --overwrite"
            )
        else:
            for path in self._partial.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_json(begun, {"identity": self.identity})

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a shard with tokens was finished."""
        return any(len(np.load(path, mmap_mode="r")) for path in self._partial.glob("source-*.tokens.npy"))

    def run(self) -> CorpusRecord:
        """Everything from the sources to the record in `ready`."""
        recipe = self._recipe
        if recipe.decontaminate:
            texts = (one for source in recipe.decontaminate for one in all_documents(source))
            self._evaluation = EvaluationTexts((one.name, one.text) for one in texts)
        total = sum(one.num_bytes for one in self._contents)
        with bar("prepare", total, "B" if total else "documents") as progress, ThreadPoolExecutor(1) as encoding:
            for number in range(len(self._contents)):
                self._read(number, encoding, progress)
            return self._divide_and_pack(progress)

    # --- reading ----------------------------------------------------------------------------------------

    def _read(self, number: int, encoding: ThreadPoolExecutor, progress: Bar) -> None:
        """Read one source into shards, from where an earlier run stopped."""
        contents, shards = self._contents[number], Shards(self._partial, number)
        known = shards.documents()
        for key, signature in itertools.zip_longest(known["key"].tolist(), shards.signatures()):
            self._seen.remember(key, signature)
        for position, length in zip(known["position"].tolist(), known["length"].tolist(), strict=True):
            self._count(position, length)
        state = shards.state
        if state.is_done:
            progress.advance(contents.num_bytes, "")
            return
        writer, shown = ShardWriter(), 0.0
        batches = self._batches(number, state, encoding)
        batch = next(batches, None)
        while batch is not None:
            ahead = next(batches, None)  # judged, while the tokenizer is at work
            self._take(batch, state, writer)
            self._check_budget(number, state, at_end=False)
            done = sum(part.num_bytes for part in contents.parts[: batch.part])
            done += batch.share * contents.parts[batch.part].num_bytes
            amount = done - shown if contents.num_bytes else len(batch.records)
            progress.advance(amount, f"{self._tokens.total():,} tokens")
            shown = done
            if writer.num_tokens >= _SHARD_TOKENS:
                writer.write(shards.next_stem, state)
                shards.stems.append(shards.next_stem)
                writer = ShardWriter()
            batch = None if self._is_full(contents.source) else ahead
        self._check_budget(number, state, at_end=True)
        writer.write(shards.next_stem, dataclasses.replace(state, is_done=True))

    def _batches(self, number: int, state: SourceState, encoding: ThreadPoolExecutor) -> Iterator[_Batch]:
        """Records that were judged, while the tokenizer is at work on those of the batch before."""
        contents, first, behind = self._contents[number], state.part, state.item
        for at in range(first, len(contents.parts)):
            item = behind if at == first else 0
            records = read_documents(contents, contents.parts[at], item)
            while True:
                found: list[_Verdict | Bad] = []
                num_chars, share = 0, 1.0
                for record, reached in itertools.islice(records, _BATCH_DOCUMENTS):
                    share = reached
                    found.append(record if isinstance(record, Bad) else self._judge(record))
                    num_chars += 0 if isinstance(record, Bad) else len(record.text)
                    if num_chars >= _BATCH_CHARS:
                        break
                if not found:
                    break
                item += len(found)
                staying = [one.document for one in found if isinstance(one, _Verdict) and not one.drop]
                yield _Batch(found, encoding.submit(self._encode, staying), at, item, share)

    def _judge(self, document: Document) -> _Verdict:
        """What becomes of a document."""
        text, recipe = document.text, self._recipe
        key = content_key(text)
        if not text.strip():
            return _Verdict(document=document, key=key, drop="num_empty", note="it is empty")
        if self._evaluation is not None and (quote := self._evaluation.quote(text)) is not None:
            return _Verdict(document=document, key=key, drop="num_contaminated", note=quote)
        copy, signature = self._seen.verdict(text, key)
        if copy:
            what = "a copy" if copy == "duplicate" else "a near copy"
            return _Verdict(document=document, key=key, drop=f"num_{copy}s", note=f"{what} of an earlier document")
        position = position_of(text) if len(recipe.splits) > 1 else 0.0
        return _Verdict(document=document, key=key, position=position, signature=signature)

    def _encode(self, documents: Sequence[Document]) -> list[Encoded | CorpusError]:
        if self._chats:
            return self._encoder.encode_chats([(one.name, one.messages) for one in documents])
        return list(self._encoder.encode_texts([one.text for one in documents]))

    def _take(self, batch: _Batch, state: SourceState, writer: ShardWriter) -> None:
        """Count every record of a batch and keep the tokens of those that stay."""
        state.part, state.item = batch.part, batch.item
        encoded = iter(batch.encoded.result())
        for one in batch.records:
            state.count("num_read")
            if isinstance(one, Bad):
                state.count_bad(one.why)
                continue
            if one.drop:
                state.count(one.drop, f"{one.document.name}: {one.note}")
                continue
            tokens = next(encoded)
            if isinstance(tokens, CorpusError):
                state.count_bad(str(tokens))
                tokens = _NOTHING  # what was seen is known to a run that goes on
            if self._num_embeddings is not None:
                check_embeddings(int(tokens.tokens_A.max(initial=0)), self._num_embeddings, self._tokenizer)
            writer.add(
                tokens,
                num_bytes=one.document.num_bytes,
                position=one.position,
                key=one.key,
                signature=one.signature,
                plain=not self._chats,
            )
            self._count(one.position, len(tokens.tokens_A))

    def _count(self, position: float, length: int) -> None:
        """Count a document, and its tokens for the split in whose share it lies, as many as that takes of one."""
        self._num_documents += 1
        name = list(self._recipe.splits)[int(np.searchsorted(self._borders, position, side="right"))]
        self._tokens[name] += min(length, self._recipe.splits[name].max_document_tokens or length)

    def _is_full(self, source: Source) -> bool:
        """Whether every split that is written has what it can hold; weights need all that a source has.

        Several splits need documents enough, however long the first ones are.
        """
        recipe = self._recipe
        few = len(recipe.splits) > 1 and self._num_documents < ENOUGH_DOCUMENTS
        if few or source.epochs is not None or source.share is not None:
            return False
        limits = {name: split.max_tokens for name, split in recipe.splits.items() if split.write}
        return all(limit is not None and self._tokens[name] >= limit for name, limit in limits.items())

    def _check_budget(self, number: int, state: SourceState, *, at_end: bool) -> None:
        bad, read, most = state.counts.get("num_bad", 0), state.counts.get("num_read", 0), self._recipe.max_bad
        if bad and most == 0:
            raise CorpusError(f"{state.bad[0]} (or allow a share of such records with max_bad)")
        if bad and (at_end or read >= _BUDGET_FROM) and bad > most * read:
            raise CorpusError(
                f"{self._contents[number].source.title}: {bad:,} of {read:,} records cannot be read, more than "
                f"max_bad {most:g}; the first: {state.bad[0]}"
            )

    # --- dividing and packing ---------------------------------------------------------------------------

    def _divide_and_pack(self, progress: Bar) -> CorpusRecord:
        recipe = self._recipe
        shards = [Shards(self._partial, number) for number in range(len(self._contents))]
        documents = [found[found["length"] > 0] for found in (one.documents() for one in shards)]
        divided = _Divided(recipe, documents, self._tokenizer, chats=self._chats)
        divided.stored = [StoredTokens(one.stems) for one in shards]
        ready = self._partial / "ready"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        shape = Shape(
            row_tokens=recipe.row_tokens, vocabulary_size=len(self._tokenizer), pad=ends_of(self._tokenizer).eos
        )
        splits = {}
        for name, split in recipe.splits.items():
            if split.write:
                progress.advance(0, f"packing {name}")
                splits[name] = divided.pack(name, ready, shape)
        record = CorpusRecord(
            row_tokens=recipe.row_tokens,
            tokenizer_digest=tokenizer_digest(self._model),
            vocabulary_size=len(self._tokenizer),
            recipe_digest=digest_json(recipe),
            inputs_digest=self.identity,
            conversations=self._chats,
            gap_tokens=GAP_TOKENS if divided.is_cut else 0,
            sources=tuple(
                _source_counts(contents, one.state, divided.counts_of(number))
                for number, (contents, one) in enumerate(zip(self._contents, shards, strict=True))
            ),
            splits=splits,
            num_evaluation_texts=0 if self._evaluation is None else len(self._evaluation.names),
            num_evaluation_texts_skipped=0 if self._evaluation is None else self._evaluation.num_skipped,
        )
        write_record(ready / RECORD_NAME, record)
        return record


class _Divided:
    """Every document's split, and what is taken of each."""

    stored: list[StoredTokens]

    def __init__(
        self,
        recipe: PrepareRecipe,
        documents: list[np.ndarray],
        tokenizer: PreTrainedTokenizerBase,
        *,
        chats: bool,
    ) -> None:
        self._recipe, self._documents, self._tokenizer = recipe, documents, tokenizer
        every = np.concatenate(documents)
        if not len(every):
            raise CorpusError("no document is left of what was read; give more text")
        self.is_cut = can_be_cut(every["length"], recipe.splits, chats=chats)
        if not self.is_cut:
            numbers_D = split_documents(every["position"], recipe.splits)
            self._numbers = np.split(numbers_D, np.cumsum([len(d) for d in documents])[:-1])
        self._taken = [np.zeros(len(d), dtype=bool) for d in documents]
        """Which documents are in a split that is written."""

    def _runs(self, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each source, the split's documents' numbers [D] and their first tokens and lengths [D, 2]."""
        number, most = list(self._recipe.splits).index(split), self._recipe.splits[split].max_document_tokens
        found = []
        for source, documents in enumerate(self._documents):
            ends = np.cumsum(documents["length"])
            if self.is_cut:
                spans = [
                    (document, int(ends[document]) - int(length) + first, size)
                    for document, length in enumerate(documents["length"].tolist())
                    for of, first, size in spans_of(length, self._recipe.splits)
                    if of == number
                ]
                runs = np.array(spans, dtype=np.int64).reshape(-1, 3)
            else:
                (chosen,) = np.nonzero(self._numbers[source] == number)
                lengths = documents["length"][chosen]
                runs = np.stack([chosen, ends[chosen] - lengths, lengths], axis=1)
            if most is not None:
                runs[:, 2] = np.minimum(runs[:, 2], most)
            found.append((runs[:, 0], runs[:, 1:]))
        return found

    def pack(self, split: str, folder: Path, shape: Shape) -> SplitCounts:
        """Write the files of one split."""
        recipe, runs = self._recipe, self._runs(split)
        hold = recipe.weights_hold(split)
        weights = [
            Weight(
                title=source.title,
                epochs=source.epochs if hold and source.epochs else None if hold and source.share else 1.0,
                share=source.share if hold else None,
                num_tokens=int(runs_D2[:, 1].sum()),
            )
            for source, (_, runs_D2) in zip(recipe.sources, runs, strict=True)
        ]
        wanted = wanted_tokens(weights, recipe.splits[split].max_tokens)
        taken = [[0, 0, 0] for _ in runs]  # documents, tokens, bytes of each source

        def pieces() -> Iterator[Piece]:
            sources = [(runs_D2, tokens) for (_, runs_D2), tokens in zip(runs, wanted, strict=True)]
            for document, (source, index, first, length) in enumerate(interleave(sources)):
                of = int(runs[source][0][index])
                self._taken[source][of] = True
                for n, amount in enumerate((1, length, self._bytes_of(source, of, first, length))):
                    taken[source][n] += amount
                yield from pieces_of(document, source, first, length, shape.row_tokens)

        rows = pack(pieces(), shape.row_tokens)
        num_rows = max(1, _FILE_TOKENS // recipe.row_tokens)
        shards = []
        while (first_row := next(rows, None)) is not None:
            here = itertools.chain([first_row], itertools.islice(rows, num_rows - 1))
            path = folder / f"{split}-{len(shards):05}.arrow"
            shards.append(write_shard(path, here, shape, lambda piece: self.stored[piece.source].read(piece)))
        if not shards:
            raise CorpusError(f"the split {split!r} is empty: its sources gave no tokens; give more text")
        mix = _mix(weights, wanted, [tokens for _, tokens, _ in taken]) if len(runs) > 1 or hold else ()
        return split_counts(shards, shape.row_tokens, sum(t[0] for t in taken), sum(t[2] for t in taken), mix)

    def _bytes_of(self, source: int, document: int, first: int, length: int) -> int:
        """UTF-8 bytes of a run of tokens: those of its document, or of what it decodes to."""
        whole = self._documents[source][document]
        if length == whole["length"]:
            return int(whole["num_bytes"])
        tokens, _ = self.stored[source].read(Piece(0, source, first, length))
        return len(str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).encode())

    def counts_of(self, source: int) -> dict[str, int]:
        """How many of a source's documents are in the corpus, of splits that are not written, or beyond a limit."""
        if self.is_cut:
            return {"num_kept": len(self._documents[source])}
        written = [split.write for split in self._recipe.splits.values()]
        is_written = np.array(written)[self._numbers[source]]
        kept, total = int(self._taken[source].sum()), len(is_written)
        num_written = int(is_written.sum())
        return {"num_kept": kept, "num_other_splits": total - num_written, "num_beyond_limit": num_written - kept}


def _mix(weights: Sequence[Weight], wanted: Sequence[int], taken: Sequence[int]) -> tuple[MixCounts, ...]:
    return tuple(
        MixCounts(
            source=weight.title,
            own_tokens=weight.num_tokens,
            num_tokens=got,
            wanted_epochs=round(tokens / max(weight.num_tokens, 1), 6),
            got_epochs=round(got / max(weight.num_tokens, 1), 6),
            wanted_share=round(tokens / sum(wanted), 6),
            got_share=round(got / sum(taken), 6),
        )
        for weight, tokens, got in zip(weights, wanted, taken, strict=True)
    )


def _source_counts(contents: Contents, state: SourceState, divided: dict[str, int]) -> SourceCounts:
    names = [field.name for field in dataclasses.fields(SourceCounts) if field.name.startswith("num_")]
    counts = {name: (state.counts | divided).get(name, 0) for name in names[:-2]}  # files and bytes are no documents
    assert 2 * counts["num_read"] == sum(counts.values()), f"documents got lost in {contents.source.path}: {counts}"
    return SourceCounts(
        source=contents.told,
        bad=state.bad,
        examples=state.examples,
        num_files=len(contents.parts),
        num_bytes=contents.num_bytes,
        **counts,
    )
