"""Sources: every kind is read, and what cannot be is refused with its file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.corpus.reading import documents
from blockexpand.corpus.sources import ChatSource, JsonSource, ProseSource, PythonSource, TextSource
from blockexpand.errors import CorpusError


def test_text_files_whole_or_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<end>\ntwo\n")
    whole = documents(TextSource(kind="text", path=str(tmp_path)))
    assert [d.text for d in whole] == ["one\n<end>\ntwo"]
    cut = documents(TextSource(kind="text", path=str(tmp_path / "a.txt"), separator="<end>"))
    assert [d.text for d in cut] == ["one", "two"]


def test_python_trees_are_decoded_as_they_say(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"))
    (found,) = documents(PythonSource(kind="python", path=str(tmp_path)))
    assert "é" in found.text
    assert found.name == "latin.py"


def test_the_standard_library_is_there_without_its_tests() -> None:
    names = {d.name for d in documents(PythonSource(kind="python"))}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not any(name.startswith(("test/", "site-packages/", "encodings/")) for name in names)


def test_json_lines_and_json_lists(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "b.json").write_text(json.dumps([{"body": "three"}]))
    assert [d.text for d in documents(JsonSource(kind="json", path=str(tmp_path / "a.jsonl")))] == ["one", "two"]
    (only,) = documents(JsonSource(kind="json", path=str(tmp_path / "b.json"), field="body"))
    assert only.text == "three"


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": turns}))
    (only,) = documents(ChatSource(kind="chat", path=str(tmp_path / "c.jsonl")))
    assert only.messages == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    cases = [
        (TextSource(kind="text", path="/no/such"), "'/no/such' does not exist; expected a file or folder of text"),
        (TextSource(kind="text", path=str(tmp_path), pattern="*.zzz"), "matches '*.zzz'"),
        (TextSource(kind="text", path=write(tmp_path / "l.txt", b"ab\xe9")), "l.txt is not UTF-8 text: "),
        (TextSource(kind="text", path=write(tmp_path / "l.txt", b"ab\xe9")), "at byte 2"),
        (PythonSource(kind="python", path=write(tmp_path / "x.py", b"")), "expected a folder of Python sources"),
        (
            JsonSource(kind="json", path=write(tmp_path / "j.jsonl", b'{"text": "a"}\n{"te')),
            "j.jsonl, line 2 is not JSON",
        ),
        (JsonSource(kind="json", path=write(tmp_path / "k.jsonl", b'{"body": "a"}')), "line 1 has no field 'text'"),
        (JsonSource(kind="json", path=write(tmp_path / "m.jsonl", b'{"text": 3}')), "'text' is 3; expected str"),
        (ChatSource(kind="chat", path=write(tmp_path / "c.jsonl", b'{"messages": [{"role": "user"}]}')), "'content'"),
        (
            ChatSource(
                kind="chat", path=write(tmp_path / "d.jsonl", b'{"messages": [{"role": "bot", "content": ""}]}')
            ),
            "unknown role 'bot'; expected one of system, user, assistant",
        ),
        (
            ChatSource(
                kind="chat", path=write(tmp_path / "e.jsonl", b'{"messages": [{"role": "user", "content": ""}]}')
            ),
            "e.jsonl, line 1 has no assistant turn",
        ),
    ]
    for source, words in cases:
        with pytest.raises(CorpusError) as caught:
            list(documents(source))
        assert words in str(caught.value)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "bad.py").write_bytes(b"# \xff\n")
    with pytest.raises(CorpusError, match=r"bad.py cannot be decoded"):
        list(documents(PythonSource(kind="python", path=str(tree))))


def test_prose_needs_a_folder_that_exists() -> None:
    with pytest.raises(CorpusError, match="'/no/packages' does not exist"):
        list(documents(ProseSource(kind="prose", path="/no/packages")))
