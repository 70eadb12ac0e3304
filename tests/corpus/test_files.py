"""Files: every format, compressed or not, reads the same; what they hold is found out; what breaks off is an error."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blockexpand.corpus import Source, look_at_sources, source_of
from blockexpand.corpus.files import Bad, Document, all_documents, look_into, read_documents
from blockexpand.errors import CorpusError

TEXTS = ["the first, é", 'a "quoted"\nline, and a comma', "last\tone"]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
COMPRESSIONS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def table_bytes(form: str, rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    if form == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if form == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()
    if form == ".json":
        return json.dumps(rows, indent=1).encode()
    if form == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    between = "\t" if form == ".tsv" else ","
    quoted = [[*rows[0]], *([str(v) for v in row.values()] for row in rows)]
    escaped = ('"' + value.replace('"', '""') + '"' for line in quoted for value in line)
    return "".join(
        f"{v}{between if n % len(rows[0]) < len(rows[0]) - 1 else chr(10)}" for n, v in enumerate(escaped)
    ).encode()


def items(source: Source) -> list[Document | Bad]:
    contents = look_into(source)
    return [item for part in contents.parts for item, _ in read_documents(contents, part)]


def texts_of(path: Path | str, **settings: Any) -> list[str]:
    return [document.text for document in all_documents(Source(path=str(path), **settings))]


@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_every_format_of_tables_compressed_or_not(tmp_path: Path, form: str) -> None:
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    data = table_bytes(form, rows)
    path = tmp_path / f"a{form}"
    path.write_bytes(data)
    assert texts_of(path) == TEXTS
    assert look_into(Source(path=str(path))).columns == ("id", "text")
    contents = look_into(Source(path=str(path)))
    (rest,) = list(read_documents(contents, contents.parts[0], 2))
    assert isinstance(rest[0], Document)
    assert rest[0].text == TEXTS[2]
    if form in (".jsonl", ".csv"):
        for ending, compress in COMPRESSIONS.items():
            packed = tmp_path / f"a{form}{ending}"
            packed.write_bytes(compress(data))
            assert texts_of(packed) == TEXTS, packed
            packed.write_bytes(compress(data * 400)[:-20])
            with pytest.raises(CorpusError, match=packed.name):
                texts_of(packed)


def test_damaged_tables_are_errors_not_records(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}" * 50} for n in range(2000)]
    for form in (".parquet", ".arrow"):
        data = bytearray(table_bytes(form, rows))
        path = tmp_path / f"a{form}"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CorpusError, match=path.name):
            items(Source(path=str(path)))


def test_bad_records_are_given_back_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b'{"text": "cut', b"", b'{"txt": "a"}', b'{"text": 3}', b'{"text": "\xe9"}']
    path.write_bytes(b"\n".join([*lines, b'{"text": "\\ud800"}', b'{"text": "good, too"}']))
    found = items(Source(path=str(path)))
    bad = [item.why for item in found if isinstance(item, Bad)]
    assert [item.text for item in found if isinstance(item, Document)] == ["good", "good, too"]
    assert [why.partition("line ")[2][0] for why in bad] == ["2", "4", "5", "6", "7"]
    assert "0xe9" in bad[3]
    assert "U+D800" in bad[4]


def test_text_of_every_encoding(tmp_path: Path) -> None:
    text = "Grüße\r\n\r\n" + "plain words of a letter\r\n" * 20
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_bytes(text.encode(encoding))
        assert texts_of(path, separator="") == [text.replace("\r\n", "\n")], encoding
        (tmp_path / "a.jsonl").write_bytes(
            (json.dumps({"text": "Grüße"}, ensure_ascii=False) + "\r\n").encode(encoding)
        )
        assert texts_of(tmp_path / "a.jsonl") == ["Grüße"], encoding
    path.write_bytes(text.encode("latin-1"))
    (bad,) = items(Source(path=str(path), separator=""))
    assert isinstance(bad, Bad)
    assert "0xfc" in bad.why
    (tmp_path / "b.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    assert "é" in texts_of(tmp_path / "b.py")[0]


def test_text_files_are_documents_or_cut_at_blank_lines(tmp_path: Path) -> None:
    pages = [f"page {n}\nof text" for n in range(6)]
    one = tmp_path / "one.txt"
    one.write_text("\n\n\n".join(pages) + "\n")
    assert texts_of(one) == pages
    assert texts_of(one, separator="") == [one.read_text()]
    assert texts_of(one, separator="page") == [p.removeprefix("page") for p in pages]
    one.write_text("<|endoftext|>".join(pages))
    assert texts_of(one) == pages
    long = tmp_path / "long.txt"
    long.write_text("\n\n".join(f"paragraph {n} " * 30 for n in range(500)))
    assert 40 <= len(texts_of(long)) <= 60
    folder = tmp_path / "pages"
    folder.mkdir()
    for n, page in enumerate(pages):
        (folder / f"{n}.md").write_text(page + "\n\nmore")
    assert sorted(texts_of(folder)) == [page + "\n\nmore" for page in pages]


def test_chats_of_every_format(tmp_path: Path) -> None:
    rows = [{"messages": TURNS}] * 3
    for form in (".jsonl", ".json", ".parquet", ".arrow"):
        (tmp_path / f"a{form}").write_bytes(table_bytes(form, rows))
        found = list(all_documents(Source(path=str(tmp_path / f"a{form}"))))
        assert [list(d.messages) for d in found] == [TURNS] * 3
    (tmp_path / "alpaca.csv").write_bytes(table_bytes(".csv", [{"instruction": "hi", "input": "", "output": "yes"}]))
    assert [list(d.messages) for d in all_documents(Source(path=str(tmp_path / "alpaca.csv")))] == [TURNS]
    (tmp_path / "talk.jsonl").write_bytes(table_bytes(".jsonl", [{"talk": TURNS, "id": 1}]))
    assert [list(d.messages) for d in all_documents(Source(path=str(tmp_path / "talk.jsonl"), field="talk"))] == [TURNS]


def test_the_text_column_is_the_only_long_one_or_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(table_bytes(".csv", [{"id": "1", "body": "long " * 50, "tag": "x"}]))
    assert look_into(Source(path=str(path))).field == "body"
    path.write_bytes(table_bytes(".csv", [{"question": "long " * 50, "context": "long " * 40}]))
    with pytest.raises(CorpusError, match=r"question \(250 characters\), context \(200 characters\)"):
        look_into(Source(path=str(path)))
    assert look_into(source_of(f"{path}:context")).field == "context"
    assert source_of(path).field is None, "a file's whole name is no column"
    assert source_of("hub:owner/name").path == "hub:owner/name"
    with pytest.raises(CorpusError, match="'body'.*question, context"):
        look_into(Source(path=str(path), field="body"))
    path = tmp_path / "strings.json"
    path.write_text(json.dumps(TEXTS))
    assert texts_of(path) == TEXTS


def test_what_a_folder_holds_is_found_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("src/a.py", "src/b.rs", "src/c.py", "src/.git/d.py", "src/node_modules/e.js", "read.md"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"text of {name}")
    assert sorted(d.name for d in all_documents(Source(path=str(tree / "src")))) == ["a.py", "b.rs", "c.py"]
    assert len(texts_of(tree, endings=(".rs",))) == 1
    assert len(texts_of(tree / "src" / "*.py")) == 2
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "a.txt").write_text("one\n\ntwo")
    (mixed / "b.jsonl").write_text('{"text": "three"}\n')
    (mixed / "README.md").write_text("about it")
    assert sorted(texts_of(mixed)) == ["one", "three", "two"]
    (mixed / "c.py").write_text("x = 1")
    with pytest.raises(CorpusError, match="1 of code, 1 tables, 2 of text"):
        look_into(Source(path=str(mixed)))
    assert texts_of(mixed, kind="code") == ["x = 1"]
    (tmp_path / "a.bin").write_text("x")
    for path, value in (("a.bin", "kind"), ("none.txt", "none.txt"), ("*.csv", "holds no file")):
        with pytest.raises(CorpusError, match=value):
            look_into(Source(path=str(tmp_path / path)))
    assert texts_of(tmp_path / "a.bin", kind="text", separator="") == ["x"]


def test_the_standard_library_is_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    contents = look_into(Source(path="stdlib"))
    names = {part.name for part in contents.parts}
    assert contents.kind == "code"
    assert {"json/decoder.py", "dataclasses.py"} <= names
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)
    document, _ = next(read_documents(contents, contents.parts[0]))
    assert isinstance(document, Document)


def test_data_sets_of_the_hub_and_what_datasets_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    table = datasets.Dataset.from_dict({"body": TEXTS})
    table.save_to_disk(tmp_path / "one")
    assert texts_of(tmp_path / "one") == TEXTS
    datasets.DatasetDict({"train": table, "test": table.select(range(1))}).save_to_disk(tmp_path / "two")
    assert texts_of(tmp_path / "two", split="test") == TEXTS[:1]
    with pytest.raises(CorpusError, match="train, test"):
        texts_of(tmp_path / "two", split="tset")
    with pytest.raises(CorpusError, match="nobody/nothing"):
        look_into(Source(path="nobody/nothing"))
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or table)
    assert texts_of("someone/texts", revision="abc") == TEXTS
    assert asked[0][0] == ("someone/texts", None)
    assert (asked[0][1]["revision"], asked[0][1]["streaming"]) == ("abc", False)


def test_sources_are_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n:04}"}) + "\n" for n in range(3000)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": TURNS}) + "\nbad\n")
    texts, chats = (look_at_sources([str(tmp_path / name)]) for name in ("a.jsonl", "b.jsonl"))
    assert texts.kind == "texts"
    assert 2700 < texts.num_documents < 3300
    assert abs(3.5 * texts.num_tokens - 27_000) < 3000
    assert (chats.kind, chats.num_documents) == ("chats", 1)
    both = look_at_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert (both.kind, both.num_documents) == ("chats", texts.num_documents + 1)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow"])
def test_documents_of_a_long_table_are_estimated_by_the_share_that_was_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(table_bytes(ending, [{"text": f"text {number:05d}"} for number in range(6000)]))
    assert 5000 < look_at_sources([str(path)]).num_documents < 7000
