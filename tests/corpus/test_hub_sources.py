"""Hugging Face data sets: folders and cached files, streamed or not, offline; missing ones are refused in a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blockexpand.corpus.documents import Bad
from blockexpand.corpus.reading import documents, parts_of, read_part
from blockexpand.corpus.sources import HuggingFaceSource
from blockexpand.errors import CorpusError

datasets = pytest.importorskip("datasets")

TEXTS = [f"text {n}" for n in range(50)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def source(path: Path | str, **settings: object) -> HuggingFaceSource:
    return HuggingFaceSource(kind="huggingface", path=str(path), **settings)  # type: ignore[arg-type]


def texts_of(found: HuggingFaceSource) -> list[str]:
    return [document.text for document in documents(found)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a repository of the hub looks: data files, no code."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return tmp_path / "data"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_data_files(folder: Path, streaming: bool) -> None:
    found = source(folder, streaming=streaming)
    assert texts_of(found) == TEXTS
    (part,) = parts_of(found)
    rest = list(read_part(found, part, 45))
    assert [item.text for item, _ in rest] == TEXTS[45:]  # type: ignore[union-attr]
    assert rest[-1][1] == (0.0 if streaming else 1.0)


def test_what_datasets_saved(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"body": TEXTS})
    table.save_to_disk(tmp_path / "one")
    assert texts_of(source(tmp_path / "one", field="body")) == TEXTS
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(tmp_path / "two")
    assert texts_of(source(tmp_path / "two", field="body", split="test")) == TEXTS[:3]
    with pytest.raises(CorpusError, match=r"split 'tset'\) cannot be opened: it has the splits train, test"):
        texts_of(source(tmp_path / "two", split="tset"))
    with pytest.raises(CorpusError, match=r"row 1 has no field 'text'; it has: body"):
        texts_of(source(tmp_path / "one"))


def test_chats(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"messages": [CHAT, CHAT]}).save_to_disk(tmp_path / "chats")
    found = list(documents(source(tmp_path / "chats", holds="chat")))
    assert [d.messages for d in found] == [tuple(dict(**turn) for turn in CHAT)] * 2


def test_a_damaged_file_is_given_back(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as stream:
        stream.write('{"text": "cut')
    found = source(folder)
    items = [item for item, _ in read_part(found, parts_of(found)[0], 0)]
    assert isinstance(items[-1], Bad)
    assert "the rest of the split is lost" in items[-1].why


def test_what_is_not_there_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"the data set 'nobody/nothing' .*split 'train'\) cannot be opened: "):
        texts_of(source("nobody/nothing"))


def test_without_the_library_the_way_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"kind huggingface, which needs the `datasets` library.*pip install"):
        texts_of(source(folder))
