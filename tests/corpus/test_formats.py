"""Files of every format: the same texts come out, and what is broken is named, counted and quoted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blockexpand.corpus import streams
from blockexpand.corpus.documents import Bad, Document
from blockexpand.corpus.reading import documents, parts_of, read_part
from blockexpand.corpus.sources import (
    ArrowSource,
    ChatSource,
    CodeSource,
    JsonSource,
    ParquetSource,
    Source,
    TextSource,
)
from blockexpand.errors import CorpusError, RecordError

TEXTS = [f"text {n} é" for n in range(600)]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def table(texts: list[Any], name: str = "text") -> pa.Table:
    return pa.table({name: texts, "other": list(range(len(texts)))})


def write_arrow(path: Path, found: pa.Table, *, stream: bool) -> None:
    with pa.OSFile(str(path), "wb") as out:
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, found.schema) as writer:
            writer.write_table(found, max_chunksize=100)


def texts_of(source: Source) -> list[str]:
    return [document.text for document in documents(source)]


def items_of(source: Source) -> list[Document | Bad]:
    return [item for part in parts_of(source) for item, _ in read_part(source, part, 0)]


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    data = as_lines(TEXTS)
    half = len(as_lines(TEXTS[:300]))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(data[:half]) + zstd(data[half:]))
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json"):
        assert texts_of(JsonSource(kind="json", path=str(tmp_path / name))) == TEXTS, name
    pq.write_table(table(TEXTS), tmp_path / "a.parquet", row_group_size=64)
    assert texts_of(ParquetSource(kind="parquet", path=str(tmp_path / "a.parquet"))) == TEXTS
    for name, stream in (("file.arrow", False), ("stream.arrow", True)):
        write_arrow(tmp_path / name, table(TEXTS), stream=stream)
        assert texts_of(ArrowSource(kind="arrow", path=str(tmp_path / name))) == TEXTS, name
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n--\n".join(TEXTS).encode()))
    assert texts_of(TextSource(kind="text", path=str(tmp_path), separator="\n--\n")) == TEXTS


def test_reading_goes_on_in_the_middle_of_a_part(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    source = JsonSource(kind="json", path=str(tmp_path / "a.jsonl"))
    (part,) = parts_of(source)
    rest = list(read_part(source, part, 590))
    assert [item.text for item, _ in rest if isinstance(item, Document)] == TEXTS[590:]
    assert rest[-1][1] == 1.0


def test_folders_and_globs_come_in_an_order_of_their_names(tmp_path: Path) -> None:
    for name in ("x.jsonl", "y.jsonl.gz", "deep/z.jsonl", ".hidden/w.jsonl", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = as_lines([name])
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    folder = texts_of(JsonSource(kind="json", path=str(tmp_path)))
    assert sorted(folder) == ["deep/z.jsonl", "x.jsonl", "y.jsonl.gz"]
    assert folder == texts_of(JsonSource(kind="json", path=str(tmp_path)))
    assert sorted(texts_of(JsonSource(kind="json", path=f"{tmp_path}/**/*.jsonl"))) == ["deep/z.jsonl", "x.jsonl"]
    with pytest.raises(CorpusError, match=r"does not exist"):
        texts_of(JsonSource(kind="json", path=f"{tmp_path}/none"))
    with pytest.raises(CorpusError, match=r"no file in .* ends with .parquet; give another path or kind"):
        texts_of(ParquetSource(kind="parquet", path=f"{tmp_path}/deep"))
    with pytest.raises(CorpusError, match=r"no file in .* ends with .jsonl, .ndjson, .json; give another path"):
        texts_of(JsonSource(kind="json", path=f"{tmp_path}/*.nothing"))


def test_source_trees_of_any_language(tmp_path: Path) -> None:
    for name in ("a.rs", "b.py", "deep/c.rs", "node_modules/d.rs", ".git/e.rs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(f"\ufeff{name}\r\n".encode())
    source = CodeSource(kind="code", path=str(tmp_path), extensions=(".rs",))
    assert sorted((d.name, d.text) for d in documents(source)) == [("a.rs", "a.rs\n"), ("deep/c.rs", "deep/c.rs\n")]
    with pytest.raises(CorpusError, match="no file in .* ends with .zig; set 'extensions'"):
        texts_of(CodeSource(kind="code", path=str(tmp_path), extensions=(".zig",)))
    with pytest.raises(RecordError, match=r"extensions: expected endings with their dot, e.g. .*, got \['rs'\]"):
        CodeSource(kind="code", path="x", extensions=("rs",))


def test_both_formats_of_chats_from_every_format_of_file(tmp_path: Path) -> None:
    ours = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    share = [{"from": "system", "value": "be"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    lines = [json.dumps({"messages": ours}), json.dumps({"conversations": share}), json.dumps({"messages": share})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    found = list(documents(ChatSource(kind="chat", path=str(tmp_path / "c.jsonl"))))
    plain = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})
    told = ({"role": "system", "content": "be"}, *plain)
    assert [document.messages for document in found] == [plain, told, told]
    pq.write_table(table([share, share], "conversations"), tmp_path / "c.parquet")
    found = list(documents(ChatSource(kind="chat", path=str(tmp_path / "c.parquet"))))
    assert [document.messages[1:] for document in found] == [plain, plain]
    pq.write_table(table([ours], "talk"), tmp_path / "d.parquet")
    (only,) = documents(ChatSource(kind="chat", path=str(tmp_path / "d.parquet"), field="talk"))
    assert only.messages == plain
    parts = [{"type": "text", "text": "y"}, {"type": "text", "value": "es"}]
    picture = [{"type": "image", "url": "x"}]
    rows = [{"messages": [ours[0], {"role": "assistant", "content": content}]} for content in (parts, picture)]
    (tmp_path / "parts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, bad = items_of(ChatSource(kind="chat", path=str(tmp_path / "parts.jsonl")))
    assert isinstance(one, Document)
    assert one.messages == plain
    assert isinstance(bad, Bad)
    assert "line 2: 'content' is [{'type': 'image'" in bad.why
    with pytest.raises(CorpusError, match=r"no field 'messages' or 'conversations'; it has: talk, other"):
        texts_of(ChatSource(kind="chat", path=str(tmp_path / "d.parquet")))


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"text": "a', "line 2 is not JSON: Unterminated string"),
    (b'{"body": "a"}', "line 2 has no field 'text'; it has: body"),
    (b'{"text": 7}', "line 2: 'text' is 7; expected str"),
    (b'{"text": null}', "line 2: 'text' is None; expected str"),
    (b'["text"]', "line 2 has no field 'text'; it has: list"),
    (b'{"text": "\xff"}', "line 2 is not UTF-8 text: invalid start byte at byte 10"),
    (b'{"text": "\\ud800"}', "line 2 holds half a surrogate pair, '\\ud800', at character 0"),
    (b"[" * 100_000, "line 2 is not JSON we read: maximum recursion depth"),
    (b'{"text": ' + b"1" * 5000 + b"}", "line 2 is not JSON we read: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES, ids=[words[:30] for _, words in BAD_LINES])
def test_a_bad_line_is_given_back_and_the_next_one_read(tmp_path: Path, line: bytes, words: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(["one"]) + line + b"\n" + as_lines(["three"]))
    source = JsonSource(kind="json", path=str(tmp_path / "a.jsonl"))
    one, bad, three = items_of(source)
    assert (one.text, three.text) == ("one", "three")  # type: ignore[union-attr]
    assert isinstance(bad, Bad)
    assert f"a.jsonl, {words}" in bad.why
    with pytest.raises(CorpusError, match="line 2"):
        texts_of(source)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_LINE_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(as_lines(["one", "x" * 300, "three"]))
    one, bad, three = items_of(JsonSource(kind="json", path=str(tmp_path / "a.jsonl")))
    assert (one.text, three.text) == ("one", "three")  # type: ignore[union-attr]
    assert isinstance(bad, Bad)
    assert "line 2 is longer than" in bad.why


DAMAGED = [(n, d) for n in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "a.txt.gz") for d in ("cut", "noise")]
DAMAGED.remove(
    ("a.jsonl.zst", "noise")
)  # Arrow writes no checksum: the noise reads as other digits, and nobody can tell


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_damaged_files_say_what_is_lost(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    texts = [f"{n} {n * 7919 % 1000003}" for n in range(5000)]
    if name.endswith("parquet"):
        pq.write_table(table(texts), path, row_group_size=500)
    elif name.endswith("arrow"):
        write_arrow(path, table(texts), stream=True)
    else:
        path.write_bytes(gzip.compress(as_lines(texts)) if name.endswith("gz") else zstd(as_lines(texts)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] if damage == "cut" else whole[:middle] + b"\xa5" * 999 + whole[middle + 999 :])
    kinds: dict[str, Source] = {
        "parquet": ParquetSource(kind="parquet", path=str(path)),
        "arrow": ArrowSource(kind="arrow", path=str(path)),
        "txt": TextSource(kind="text", path=str(path)),
    }
    source = next((s for k, s in kinds.items() if k in name), JsonSource(kind="json", path=str(path)))
    items = items_of(source)
    bad = [item for item in items if isinstance(item, Bad)]
    assert len(bad) >= 1
    assert all(name in item.why for item in bad)
    assert any(words in item.why for item in bad for words in ("what stands behind is lost", "are damaged"))
    assert len(items) < 5000


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    pq.write_table(table(["a"]), tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", table([1, 2]), stream=False)
    with pytest.raises(CorpusError, match=r"a.parquet has no field 'body'; it has: text, other. Set 'field'"):
        texts_of(ParquetSource(kind="parquet", path=str(tmp_path / "a.parquet"), field="body"))
    with pytest.raises(CorpusError, match=r"a.arrow, row 1: 'text' is 1; expected str"):
        texts_of(ArrowSource(kind="arrow", path=str(tmp_path / "a.arrow")))
