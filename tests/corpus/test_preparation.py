"""`prepare`: counts add up, the same inputs give the same bytes however often it was killed, rows say the texts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe, load_recipe, make_recipe, open_corpus, prepare
from blockexpand.corpus import preparation as preparation_module
from blockexpand.corpus.rows import TokenRows
from blockexpand.corpus.shards import locked
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import CorpusError, RecordError, StagingError
from blockexpand.records import read_json, write_json
from helpers import tree
from lm_helpers import ROW_TOKENS, make_chats, make_corpus, make_lm, sentences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe_of(tmp_path: Path, texts: list[str], **settings: Any) -> PrepareRecipe:
    source = Source(path=str(write_texts(tmp_path / "texts.jsonl", texts)))
    return PrepareRecipe(sources=(source,), row_tokens=ROW_TOKENS, **settings)


def documents_of(rows: TokenRows) -> list[list[int]]:
    """The tokens of every document of a split, put together from its pieces."""
    every = np.arange(rows.num_rows)
    tokens, trained, positions = rows.tokens_NT(every), rows.trained_NT(every), rows.positions_NT(every)
    parts: dict[int, list[int]] = {}
    for n, (lengths, documents) in enumerate(zip(rows.lengths(every), rows.documents(every), strict=True)):
        at = 0
        for length, document in zip(lengths, documents, strict=True):
            segment = tokens[n, at : at + length].tolist()
            assert positions[n, at : at + length].tolist() == list(range(length))
            assert trained[n, at : at + length].tolist() == [False] + [True] * (length - 1)
            # Pieces after a document's first repeat one token, as their context.
            parts[document] = parts[document] + segment[1:] if document in parts else segment
            at += length
        assert not trained[n, at:].any()
    return [parts[d] for d in sorted(parts)]


def test_the_rows_say_what_the_documents_said(tmp_path: Path, model: Path) -> None:
    texts = sentences(50, 1)
    record = prepare(recipe_of(tmp_path, texts), model, tmp_path / "out")
    rows = open_corpus(tmp_path / "out").rows("train")
    tokenizer = load_tokenizer(model)
    found = documents_of(rows)
    assert sorted(tokenizer.decode(tokens[:-1], skip_special_tokens=True) for tokens in found) == sorted(texts)
    assert {tokens[-1] for tokens in found} == {tokenizer.eos_token_id}
    assert record.splits["train"].num_bytes == sum(len(text.encode()) for text in texts)
    few = rows.first(2)
    assert (few.num_rows, rows.first(10**6).num_rows) == (2, rows.num_rows)
    assert np.array_equal(few.tokens_NT(np.arange(2)), rows.tokens_NT(np.arange(2)))


def test_counts_add_up(tmp_path: Path, model: Path) -> None:
    texts = [*sentences(60, 2), "", "  ", sentences(60, 2)[0] + " "]
    shares = {
        "train": SplitRecipe(share=0.6, max_tokens=300),
        "test": SplitRecipe(share=0.2),
        "gone": SplitRecipe(share=0.2, write=False),
    }
    record = prepare(recipe_of(tmp_path, texts, splits=shares), model, tmp_path / "out")
    (counts,) = record.sources
    assert (counts.num_read, counts.num_empty, counts.num_duplicates) == (63, 2, 1)
    assert counts.num_kept + counts.num_other_splits + counts.num_beyond_limit == 60
    assert counts.num_kept == sum(split.num_documents for split in record.splits.values())
    assert min(counts.num_other_splits, counts.num_beyond_limit) > 0
    assert sorted(os.listdir(tmp_path / "out")) == ["blockexpand.json", "test-00000.arrow", "train-00000.arrow"]
    for name, split in record.splits.items():
        rows = open_corpus(tmp_path / "out").rows(name)
        every = np.arange(rows.num_rows)
        assert split.num_trained_tokens == rows.trained_NT(every).sum()
        assert split.num_tokens == sum(map(sum, rows.lengths(every)))
        assert split.fill == pytest.approx(split.num_tokens / (split.num_rows * ROW_TOKENS), abs=1e-6)
        assert split.largest_token == rows.tokens_NT(every).max()


@pytest.mark.parametrize("limit", [40, 4000])
def test_a_limit_on_tokens_holds_by_cutting_the_last_document(tmp_path: Path, model: Path, limit: int) -> None:
    """`max_tokens: 4_000` became one document of 12,844 tokens."""
    split = {"train": SplitRecipe(share=1.0, max_tokens=limit)}
    texts = [" ".join(sentences(300, seed)) for seed in range(3)]
    record = prepare(recipe_of(tmp_path, texts, splits=split), model, tmp_path / "out")
    found = documents_of(open_corpus(tmp_path / "out").rows("train"))
    assert sum(map(len, found)) == limit
    decoded = load_tokenizer(model).batch_decode(found, skip_special_tokens=True)
    assert record.splits["train"].num_bytes == sum(len(text.encode()) for text in decoded)
    short = {"train": SplitRecipe(share=1.0, max_document_tokens=20)}
    prepare(recipe_of(tmp_path, texts, splits=short), model, tmp_path / "short")
    assert list(map(len, documents_of(open_corpus(tmp_path / "short").rows("train")))) == [20, 20, 20]


def test_reading_ends_when_every_split_is_full(tmp_path: Path, model: Path) -> None:
    split = {"train": SplitRecipe(share=1.0, max_tokens=100)}
    record = prepare(recipe_of(tmp_path, sentences(2000, 3), splits=split), model, tmp_path / "out")
    assert record.sources[0].num_read < 1000
    assert record.splits["train"].num_tokens >= 100
    short = {"train": SplitRecipe(share=1.0, max_tokens=3000, max_document_tokens=3)}
    record = prepare(recipe_of(tmp_path, sentences(2000, 3), splits=short), model, tmp_path / "short")
    assert record.splits["train"].num_tokens == 3000  # of each document three


def test_long_documents_do_not_end_the_reading_before_there_are_enough_for_the_splits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of long modules was "4 documents are left", or cut in spans, where a limit was small."""
    shares = {name: SplitRecipe(share=share, max_tokens=300) for name, share in (("train", 0.5), ("test", 0.5))}
    monkeypatch.setattr("blockexpand.corpus.preparation._BATCH_CHARS", 5000)
    texts = [" ".join(sentences(30, seed)) for seed in range(40)]
    record = prepare(recipe_of(tmp_path, texts, splits=shares), model, tmp_path / "out")
    assert record.gap_tokens == 0
    assert 20 <= record.sources[0].num_read < 40
    assert [split.num_documents for split in record.splits.values()] == [1, 1]


@pytest.mark.parametrize("count", [5, 20, 301])
def test_few_documents_are_enough_for_three_splits(tmp_path: Path, model: Path, count: int) -> None:
    write_texts(tmp_path / "a.jsonl", sentences(count, 7))
    record = prepare(tmp_path / "a.jsonl", model, tmp_path / "out", row_tokens=ROW_TOKENS)
    assert list(record.splits) == ["train", "validation", "test"]
    assert all(split.num_documents >= min(8, max(1, count // 10)) for split in record.splits.values())
    assert sum(split.num_documents for split in record.splits.values()) == count
    assert record.gap_tokens == 0
    write_texts(tmp_path / "four.jsonl", sentences(4, 7))
    with pytest.raises(CorpusError, match="4 documents"):
        prepare(tmp_path / "four.jsonl", model, tmp_path / "four")


def test_a_few_long_texts_are_cut_with_a_gap(tmp_path: Path, model: Path) -> None:
    texts = [" ".join(sentences(100, seed)) for seed in range(6)]
    write_texts(tmp_path / "a.jsonl", texts)
    record = prepare(tmp_path / "a.jsonl", model, tmp_path / "out", row_tokens=ROW_TOKENS)
    assert record.gap_tokens == 64
    assert [split.num_documents for split in record.splits.values()] == [6, 6, 6]
    assert record.sources[0].num_kept == 6
    tokenizer = load_tokenizer(model)
    corpus = open_corpus(tmp_path / "out")
    for name in record.splits:
        for tokens in documents_of(corpus.rows(name)):
            assert any(tokenizer.decode(tokens, skip_special_tokens=True) in text for text in texts)


def test_chats_are_packed_and_marked(tmp_path: Path, model: Path) -> None:
    corpus = open_corpus(make_chats(tmp_path / "chats", model))
    assert corpus.record.conversations
    rows = corpus.rows("train")
    every = np.arange(rows.num_rows)
    tokens, trained = rows.tokens_NT(every), rows.trained_NT(every)
    assert (tokens[trained] == 1).sum() == corpus.record.splits["train"].num_documents
    assert trained.sum() < 0.5 * corpus.record.splits["train"].num_tokens
    settings: dict[str, Any] = {"held_out": 0, "row_tokens": 64}
    whole = prepare(tmp_path / "chats.jsonl", model, tmp_path / "all", trained_turns="all", **settings).splits["train"]
    answers = prepare(tmp_path / "chats.jsonl", model, tmp_path / "answers", **settings).splits["train"]
    assert answers.num_trained_tokens < whole.num_trained_tokens == whole.num_tokens - whole.num_documents
    write_texts(tmp_path / "texts.jsonl", sentences(5, 1))
    with pytest.raises(CorpusError, match=r"chats.jsonl \(chat\), .*texts.jsonl \(table\)"):
        prepare([tmp_path / "chats.jsonl", tmp_path / "texts.jsonl"], model, tmp_path / "both")
    with pytest.raises(CorpusError, match="trained_turns"):
        prepare(tmp_path / "texts.jsonl", model, tmp_path / "both", trained_turns="all")


def test_weights_come_out_exactly(tmp_path: Path, model: Path) -> None:
    one, other = (write_texts(tmp_path / f"{n}.jsonl", sentences(200, n)) for n in (1, 2))
    splits = {"train": SplitRecipe(share=0.8), "test": SplitRecipe(share=0.2)}
    sources = (Source(path=str(one), epochs=1.5), Source(path=str(other), share=0.25))
    recipe = PrepareRecipe(sources=sources, row_tokens=ROW_TOKENS, splits=splits)
    record = prepare(recipe, model, tmp_path / "out")
    first, second = record.splits["train"].mix
    assert (first.got_epochs, second.got_share) == (pytest.approx(1.5, abs=1e-3), pytest.approx(0.25, abs=1e-3))
    assert [mix.got_epochs for mix in record.splits["test"].mix] == [1.0, 1.0]


def test_drops_are_counted_and_quoted(tmp_path: Path, model: Path) -> None:
    texts = sentences(40, 1)
    long = " ".join(sentences(20, 9))
    task = "how many birds does the old man by the river see on a cold day in winter"
    source = write_texts(tmp_path / "a.jsonl", [*texts, f"{long} {task}.", long, long.replace("cat", "dog", 1)])
    recipe = PrepareRecipe(
        sources=(Source(path=str(source)),),
        row_tokens=ROW_TOKENS,
        near_copies=0.8,
        decontaminate=(Source(path=str(write_texts(tmp_path / "tasks.jsonl", [task]))),),
    )
    record = prepare(recipe, model, tmp_path / "out")
    (counts,) = record.sources
    assert (counts.num_kept, counts.num_near_duplicates, counts.num_contaminated) == (41, 1, 1)
    assert record.num_evaluation_texts == 1
    assert any("tasks.jsonl, line 1" in example and "a.jsonl, line 41" in example for example in counts.examples)


def test_bad_records_stop_or_are_counted_and_quoted(tmp_path: Path, model: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", sentences(60, 1))
    path.write_bytes(path.read_bytes() + b'{"text": "cut\n{"txt": "a"}\n\xff\n')
    with pytest.raises(CorpusError, match="line 61"):
        prepare(path, model, tmp_path / "out")
    with pytest.raises(CorpusError, match="3 of 63"):
        prepare(path, model, tmp_path / "out", max_bad=0.04)
    assert not list(tmp_path.glob("out*"))
    (counts,) = prepare(path, model, tmp_path / "out", max_bad=0.05).sources
    assert (counts.num_read, counts.num_kept, counts.num_bad) == (63, 60, 3)
    assert [why.partition("line ")[2][:2] for why in counts.bad] == ["61", "62", "63"]
    # A file that breaks off is an error, whatever max_bad says.
    import gzip

    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(write_texts(path, sentences(600, 1)).read_bytes())[:-50])
    with pytest.raises(CorpusError, match="b.jsonl.gz"):
        prepare(broken, model, tmp_path / "broken", max_bad=0.9)


def test_token_ids_beyond_the_models_embeddings_are_refused(tmp_path: Path, model: Path) -> None:
    small = make_lm(tmp_path / "small")
    write_json(small / "config.json", {**read_json(small / "config.json"), "vocab_size": 200})
    write_texts(tmp_path / "a.jsonl", sentences(10, 1))
    with pytest.raises(CorpusError, match="200 embeddings"):
        prepare(tmp_path / "a.jsonl", small, tmp_path / "out", held_out=0)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by a signal after some shards, and stopped by an error in the second source."""
    paths = [write_texts(tmp_path / f"{n}.jsonl", sentences(900, n)) for n in (1, 2)]
    words = [str(p) for p in (*paths, model, tmp_path / "out")]
    monkeypatch.setattr(preparation_module, "_SHARD_TOKENS", 4000)
    prepare(paths, model, tmp_path / "whole", row_tokens=ROW_TOKENS)
    prepare(paths, model, tmp_path / "again", row_tokens=ROW_TOKENS)
    assert tree(tmp_path / "whole") == tree(tmp_path / "again")
    code = f"""
import os, signal
from blockexpand.corpus import preparation, shards
preparation._SHARD_TOKENS = 4000
write = shards.ShardWriter.write
def killed(self, stem, state):
    if str(stem).endswith("source-001-00001"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, stem, state)
shards.ShardWriter.write = killed
a, b, model, out = {words!r}
preparation.prepare([a, b], model, out, row_tokens={ROW_TOKENS})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out.partial").glob("source-000-*.json"))) > 2
    with pytest.raises(CorpusError, match="--resume"):
        prepare(paths, model, tmp_path / "out", row_tokens=ROW_TOKENS)
    with pytest.raises(CorpusError, match="begun with other"):
        prepare(paths, model, tmp_path / "out", row_tokens=2 * ROW_TOKENS, resume=True)
    read: list[int] = []
    monkeypatch.setattr(
        preparation_module._Preparation,
        "_judge",
        lambda self, document, judge=preparation_module._Preparation._judge: read.append(1) or judge(self, document),
    )
    prepare(paths, model, tmp_path / "out", row_tokens=ROW_TOKENS, resume=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert 0 < len(read) < 900  # nothing of the first source, and not all of the second
    assert not (tmp_path / "out.partial").exists()
    before = len(read)
    prepare(paths, model, tmp_path / "out", row_tokens=ROW_TOKENS, resume=True)  # finished is finished
    assert len(read) == before
    write_texts(paths[0], sentences(901, 1))
    with pytest.raises(StagingError, match="out"):  # of other contents: not the same corpus
        prepare(paths, model, tmp_path / "out", row_tokens=ROW_TOKENS, resume=True)


def test_what_was_seen_is_known_after_a_kill(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that could not be encoded count as seen, too: their copies are copies however often the work stopped."""
    chats = [[{"role": "user", "content": f"{n} <|end|>"}, {"role": "assistant", "content": "no"}] for n in range(300)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in [*chats, *make_turns(100), *chats[:9]]))
    monkeypatch.setattr(preparation_module, "_SHARD_TOKENS", 1)
    settings: dict[str, Any] = {"held_out": 0, "max_bad": 0.9}
    prepare(path, model, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(preparation_module._Divided, "pack", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(path, model, tmp_path / "out", **settings)
    shards = sorted((tmp_path / "out.partial").glob("source-*.json"))
    for shard in shards[1:]:
        shard.unlink()  # as if killed behind the first
    assert len(shards) > 1
    prepare(path, model, tmp_path / "out", resume=True, **settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert open_corpus(tmp_path / "out").record.sources[0].num_duplicates == 9


def make_turns(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": t}, {"role": "assistant", "content": "yes"}] for t in sentences(count, 3)]


def test_an_interrupt_says_where_the_work_is_and_a_lock_keeps_others_out(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_texts(tmp_path / "a.jsonl", sentences(600, 1))
    monkeypatch.setattr(preparation_module, "_SHARD_TOKENS", 4000)
    pack = preparation_module._Divided.pack

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation_module._Divided, "pack", stop)
    with pytest.raises(KeyboardInterrupt, match="out.partial"):
        prepare(path, model, tmp_path / "out")
    monkeypatch.setattr(preparation_module._Divided, "pack", pack)
    with locked(tmp_path / "out.partial"), pytest.raises(CorpusError, match="another prepare"):
        prepare(path, model, tmp_path / "out", resume=True)
    prepare(path, model, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out.partial").exists()


def test_bad_input_leaves_nothing(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CorpusError, match="no document is left"):
        prepare(recipe_of(tmp_path, ["", " "]), model, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    make_corpus(tmp_path / "taken", model)
    before = tree(tmp_path / "taken")
    with pytest.raises(StagingError, match="taken"):
        prepare(recipe_of(tmp_path, ["a"]), model, tmp_path / "taken")
    assert tree(tmp_path / "taken") == before
    with pytest.raises(CorpusError, match="row_tokens"):
        prepare(recipe_of(tmp_path, ["a"]), model, tmp_path / "out", row_tokens=64)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sources: []", "sources"),
        ("sources: [{kind: tex, path: x}]", "kind"),
        ("sources: [{pth: x}]", "'pth'; did you mean 'path'"),
        ("sources: [{path: x, endings: [py]}]", "py"),
        ("sources: [{path: x, epochs: 1, share: 0.5}]", "share"),
        ("sources: [{path: x}]\nrow_tokens: 4", "got 4"),
        ("sources: [{path: x}]\nsplits: {a: {share: 0.5}}", "sum to 1"),
        ("sources: [{path: x}]\nsplits: {a: {share: 0}}", "splits.a.share"),
    ],
)
def test_recipes_are_strict(tmp_path: Path, text: str, value: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        load_recipe(path)
    assert value in str(caught.value)
    with pytest.raises(RecordError, match="held_out"):
        make_recipe("x", held_out=0.5)


def test_folders_that_are_no_corpus_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CorpusError, match="not a prepared corpus"):
        open_corpus(tmp_path)
    corpus = open_corpus(make_corpus(tmp_path / "c", model))
    with pytest.raises(CorpusError, match="'tset'; it has: train, replay, validation, test"):
        corpus.rows("tset")
    (tmp_path / "c" / "test-00000.arrow").write_bytes(b"ARROW1 nonsense")
    with pytest.raises(CorpusError, match="test-00000.arrow"):
        corpus.rows("test")
    (tmp_path / "c" / "train-00000.arrow").unlink()
    with pytest.raises(CorpusError, match="train-00000.arrow"):
        corpus.rows("train")
