"""Decontamination: thirteen words in common are found, quoted and counted, whatever their case and spacing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.corpus.decontamination import evaluation_texts
from blockexpand.corpus.documents import words_of
from blockexpand.corpus.fingerprints import WordHashes
from blockexpand.corpus.recipe import DecontaminateRecipe
from blockexpand.corpus.sources import JsonSource
from blockexpand.errors import CorpusError, RecordError

QUESTION = "Write a function that returns the sum of all even numbers in a list of integers, please"
SHORT = "how many apples do nine men eat daily"  # eight words
TINY = "what is it"


def recipe_of(tmp_path: Path, *texts: str, **settings: int) -> DecontaminateRecipe:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DecontaminateRecipe(against=(JsonSource(kind="json", path=str(path)),), **settings)


def quote(tmp_path: Path, text: str, *texts: str) -> str | None:
    found = evaluation_texts(recipe_of(tmp_path, *texts))
    words = words_of(text)
    return found.quote(words, WordHashes().of(words))


def test_thirteen_words_in_common_are_quoted(tmp_path: Path) -> None:
    page = "Some page. WRITE a function -- that returns the\nsum of all even numbers in a tuple. And so on."
    found = quote(tmp_path, page, "another text of eight words or rather nine", QUESTION)
    assert found is not None
    assert "'write a function that returns the sum of all even numbers in a'" in found
    assert "tasks.jsonl, line 2" in found


def test_twelve_words_in_common_are_not(tmp_path: Path) -> None:
    assert quote(tmp_path, "write a function that returns the sum of all even numbers in one go", QUESTION) is None
    assert quote(tmp_path, "", QUESTION) is None
    assert quote(tmp_path, "write", QUESTION) is None


def test_a_shorter_text_counts_whole_and_a_tiny_one_is_skipped(tmp_path: Path) -> None:
    assert quote(tmp_path, f"Well: {SHORT}? Forty.", QUESTION, SHORT) is not None
    assert quote(tmp_path, f"Well: {SHORT[:-6]} rarely? {TINY}", QUESTION, SHORT, TINY) is None
    found = evaluation_texts(recipe_of(tmp_path, QUESTION, SHORT, TINY))
    assert (len(found.names), found.num_skipped) == (2, 1)


def test_texts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="none of the 1 evaluation texts has 8 words; give longer ones"):
        evaluation_texts(recipe_of(tmp_path, TINY))
    with pytest.raises(RecordError, match=r"least_words: expected 1 to gram_words \(5\), got 8"):
        recipe_of(tmp_path, TINY, gram_words=5)
    with pytest.raises(RecordError, match="gram_words: expected at least 2, got 1"):
        recipe_of(tmp_path, TINY, gram_words=1, least_words=1)
