"""`prepare`: counts add up, the same inputs give the same bytes, and the rows say what the documents said."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from blockexpand.corpus import PrepareRecipe, SplitRecipe, load_recipe, open_corpus, prepare
from blockexpand.corpus.sources import ChatSource, JsonSource, TextSource
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import CorpusError, RecordError, StagingError
from helpers import tree
from lm_helpers import ROW_TOKENS, make_chats, make_corpus, make_lm, sentences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


def recipe_of(tmp_path: Path, texts: list[str], **settings: object) -> PrepareRecipe:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = JsonSource(kind="json", path=str(path))
    return PrepareRecipe(sources=(source,), row_tokens=ROW_TOKENS, **settings)  # type: ignore[arg-type]


def test_the_rows_say_what_the_documents_said(tmp_path: Path, model: Path) -> None:
    texts = sentences(50, 1)
    prepare(recipe_of(tmp_path, texts), model, tmp_path / "out")
    rows = open_corpus(tmp_path / "out").rows("train")
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
    tokenizer = load_tokenizer(model)
    said = [tokenizer.decode(parts[d][1:-1]) for d in sorted(parts)]
    assert sorted(said) == sorted(texts)


def test_the_first_rows_are_a_split_of_their_own(tmp_path: Path, model: Path) -> None:
    prepare(recipe_of(tmp_path, sentences(50, 1)), model, tmp_path / "out")
    rows = open_corpus(tmp_path / "out").rows("train")
    few = rows.first(2)
    assert (few.num_rows, rows.first(10**6).num_rows) == (2, rows.num_rows)
    assert rows.num_rows > 2
    assert np.array_equal(few.tokens_NT(np.arange(2)), rows.tokens_NT(np.arange(2)))


def test_counts_add_up(tmp_path: Path, model: Path) -> None:
    texts = [*sentences(60, 2), "", "  ", sentences(60, 2)[0].upper()]
    shares = {
        "train": SplitRecipe(share=0.6, max_tokens=300),
        "test": SplitRecipe(share=0.2),
        "gone": SplitRecipe(share=0.2, write=False),
    }
    record = prepare(recipe_of(tmp_path, texts, splits=shares), model, tmp_path / "out")
    (counts,) = record.sources
    assert counts.num_read == 63
    assert (counts.num_too_short, counts.num_duplicates) == (2, 1)
    parts = counts.num_kept + counts.num_other_splits + counts.num_beyond_limit
    assert parts + counts.num_too_short + counts.num_duplicates == 63
    assert counts.num_kept == sum(split.num_documents for split in record.splits.values())
    assert set(record.splits) == {"train", "test"}
    assert sorted(os.listdir(tmp_path / "out")) == ["blockexpand.json", "test-00000.arrow", "train-00000.arrow"]
    for name, split in record.splits.items():
        rows = open_corpus(tmp_path / "out").rows(name)
        every = np.arange(rows.num_rows)
        assert split.num_trained_tokens == rows.trained_NT(every).sum()
        assert split.num_tokens == sum(map(sum, rows.lengths(every)))
        assert split.fill == pytest.approx(split.num_tokens / (split.num_rows * ROW_TOKENS), abs=1e-6)
        assert split.largest_token == rows.tokens_NT(every).max()
    assert record.splits["train"].num_tokens >= 300


def test_reading_ends_when_every_split_is_full(tmp_path: Path, model: Path) -> None:
    split = {"train": SplitRecipe(share=1.0, max_tokens=100)}
    record = prepare(recipe_of(tmp_path, sentences(2000, 3), splits=split), model, tmp_path / "out")
    assert record.sources[0].num_read < 400


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, sentences(80, 4))
    prepare(recipe, model, tmp_path / "a")
    prepare(recipe, model, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_long_documents_can_be_cut(tmp_path: Path, model: Path) -> None:
    split = {"train": SplitRecipe(share=1.0, max_document_chars=20)}
    record = prepare(recipe_of(tmp_path, sentences(10, 4), splits=split), model, tmp_path / "out")
    assert record.splits["train"].num_bytes == 200


def test_conversations_are_packed_and_marked(tmp_path: Path, model: Path) -> None:
    corpus = open_corpus(make_chats(tmp_path / "chats", model))
    assert corpus.record.conversations
    rows = corpus.rows("train")
    every = np.arange(rows.num_rows)
    tokens, trained = rows.tokens_NT(every), rows.trained_NT(every)
    ends = int((tokens[trained] == 1).sum())
    assert ends == corpus.record.splits["train"].num_documents
    assert trained.sum() < 0.5 * corpus.record.splits["train"].num_tokens


def test_conversations_are_trained_whole_if_wanted(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "c.jsonl"
    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "the dog."}]
    more = [*turns, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "the tree."}]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in (turns, more)))
    recipe = PrepareRecipe(sources=(ChatSource(kind="chat", path=str(path)),), row_tokens=64)
    answers = prepare(recipe, model, tmp_path / "answers").splits["train"]
    whole = prepare(dataclasses.replace(recipe, trained_turns="all"), model, tmp_path / "all").splits["train"]
    assert (answers.num_documents, whole.num_documents, whole.num_tokens) == (2, 2, answers.num_tokens)
    assert answers.num_trained_tokens < whole.num_trained_tokens == whole.num_tokens - 2


def test_bad_input_leaves_nothing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    bad = PrepareRecipe(sources=(JsonSource(kind="json", path=str(tmp_path / "latin.jsonl")),))
    with pytest.raises(CorpusError, match="latin.jsonl, line 1 is not UTF-8"):
        prepare(bad, model, tmp_path / "out")
    with pytest.raises(
        CorpusError,
        match="the split 'train' is empty: of 0 documents kept none fell into its share of 1; give more text",
    ):
        prepare(recipe_of(tmp_path, ["", " "]), model, tmp_path / "out")
    (tmp_path / "one.txt").write_text("one document only")
    halves = {"train": SplitRecipe(share=0.5), "test": SplitRecipe(share=0.5)}
    one = PrepareRecipe(sources=(TextSource(kind="text", path=str(tmp_path / "one.txt")),), splits=halves)
    with pytest.raises(CorpusError, match=r"of 1 documents kept \(a text file is one document, unless"):
        prepare(one, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_corpus(tmp_path / "taken", model)
    before = tree(tmp_path / "taken")
    with pytest.raises(StagingError, match="taken already exists"):
        prepare(recipe_of(tmp_path, ["a"]), model, tmp_path / "taken")
    assert tree(tmp_path / "taken") == before
    assert [n for n in os.listdir(tmp_path) if n.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources: []", "sources: expected at least one source"),
        ("sources: [{kind: tex, path: x}]", "expected 'kind' to be one of"),
        ("sources: [{kind: text, pth: x}]", "unknown key 'pth'; did you mean 'path'"),
        ("sources: [{kind: text, path: x}]\nrow_tokens: 4", "row_tokens: expected at least 8, got 4"),
        ("sources: [{kind: text, path: x}]\nsplits: {a: {share: 0.5}}", "splits: expected shares that sum to 1"),
        ("sources: [{kind: text, path: x}]\nsplits: {a: {share: 0}}", "splits.a.share: expected a number above 0"),
        ("sources: [{kind: text, path: x}, {kind: chat, path: y}]", "sources: expected all chats or no chats"),
        (
            "sources: [{kind: chat, path: x}]\nsplits: {a: {share: 1, max_document_chars: 9}}",
            "max_document_chars: expected unset for conversations",
        ),
        (
            "sources: [{kind: text, path: x}]\ntrained_turns: all",
            "trained_turns: expected unset for texts, of which every token is trained, got 'all'",
        ),
    ],
)
def test_recipes_are_strict(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        load_recipe(path)
    assert words in str(caught.value)


def test_folders_that_are_no_corpus_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CorpusError, match="is not a prepared corpus"):
        open_corpus(tmp_path)
    corpus = open_corpus(make_corpus(tmp_path / "c", model))
    with pytest.raises(CorpusError, match="has no split 'tset'; it has: train, replay, validation, test"):
        corpus.rows("tset")
    (tmp_path / "c" / "test-00000.arrow").write_bytes(b"ARROW1 nonsense")
    with pytest.raises(CorpusError, match="test-00000.arrow is damaged"):
        corpus.rows("test")
    (tmp_path / "c" / "train-00000.arrow").unlink()
    with pytest.raises(CorpusError, match="no split at .*train-00000.arrow"):
        corpus.rows("train")


def test_a_chat_source_with_an_unfit_record_names_it(tmp_path: Path, model: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"messages": []}')
    with pytest.raises(CorpusError, match="c.jsonl, line 1 has no assistant turn"):
        prepare(
            PrepareRecipe(sources=(ChatSource(kind="chat", path=str(tmp_path / "c.jsonl")),)), model, tmp_path / "o"
        )
