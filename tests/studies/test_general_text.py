"""The general text: its origins, its split by hash, and that train holds no near copies of held-out text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from studies.tiny_base.general_text import SHARES, divide, general_documents, split_of

from blockexpand.corpus import Document
from blockexpand.errors import CorpusError

WORDS = [f"word{i}" for i in range(500)]


def texts(count: int, seed: int = 0) -> list[str]:
    r = random.Random(seed)
    return [" ".join(r.choices(WORDS, k=40)) for _ in range(count)]


def test_shares_sum_to_one() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


def test_each_document_falls_where_its_hash_says() -> None:
    splits, counts = divide(("a", Document(text=t, name="n", num_bytes=0)) for t in texts(300))
    assert sum(len(items) for items in splits.values()) == counts["kept a"] == 300
    for name, items in splits.items():
        assert all(split_of(d.text) == name for d in items)
    assert len(splits["train"]) > 200


def test_a_document_is_kept_once() -> None:
    (text,) = texts(1)
    splits, counts = divide(
        [("a", Document(text=text, name="1", num_bytes=0)), ("b", Document(text=text + " ", name="2", num_bytes=0))]
    )
    assert sum(len(items) for items in splits.values()) == 1
    assert counts["duplicate"] == 1


def test_train_holds_no_near_copy_of_held_out_text() -> None:
    held_out = next(t for t in texts(2000) if split_of(t) == "test")
    copies = (f"{held_out} and {end}" for end in WORDS)
    # Appended words rarely move the hash; a prefix may.
    near = next(t for c in copies for t in (f"{c[:9]} zero {c}", f"one {c}") if split_of(t) == "train")
    splits, counts = divide(
        [("a", Document(text=near, name="near", num_bytes=0)), ("a", Document(text=held_out, name="held", num_bytes=0))]
    )
    assert counts["near copy"] == 1
    assert splits["train"] == []


def test_further_text_comes_from_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.tiny_base.general_text.prose_documents", lambda: iter(()))
    for folder in ("wiki", "stories", "plays", "web", "answers"):
        (tmp_path / folder).mkdir()
    (tmp_path / "wiki" / "a.txt").write_text("one\ntwo")
    (tmp_path / "stories" / "a.txt").write_text("three<|endoftext|>four")
    (tmp_path / "plays" / "a.txt").write_text("five\n\nsix")
    (tmp_path / "web" / "a.jsonl").write_text(json.dumps({"text": "seven"}) + "\n")
    long = "an answer that is long enough to be kept as text"
    rows = [{"q": "short", "a": [long]}, {"a": f"{long} ```code```"}]
    (tmp_path / "answers" / "a.json").write_text(json.dumps(rows))
    found = [(origin, d.text) for origin, d in general_documents(tmp_path)]
    assert found == [
        ("wiki", "one"),
        ("wiki", "two"),
        ("stories", "three"),
        ("stories", "four"),
        ("plays", "five"),
        ("plays", "six"),
        ("web", "seven"),
        ("answers", long),
    ]


def test_a_folder_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.tiny_base.general_text.prose_documents", lambda: iter(()))
    with pytest.raises(CorpusError, match="holds none of the folders wiki"):
        list(general_documents(tmp_path))
