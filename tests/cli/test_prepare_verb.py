"""The verb `prepare`: what files hold is found out, and what came of them is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blockexpand.cli.main import run
from blockexpand.cli.prepare import _guess, _source
from blockexpand.corpus import load_recipe, open_corpus
from blockexpand.errors import UsageError
from lm_helpers import make_lm, sentences

RECIPES = Path(__file__).parents[2] / "recipes"
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat."}]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("prepare-*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_resolves(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.row_tokens == 4096
    assert recipe.weights_hold("train")
    assert not recipe.weights_hold("validation")


def test_the_papers_mixture_is_in_its_recipe() -> None:
    """Table 6: Proof-Pile-2 at 1.00, The Stack's Python at 1.50."""
    recipe = load_recipe(RECIPES / "prepare-code-math.yaml")
    assert [source.epochs for source in recipe.sources] == [1.0, 1.0, 1.0, 1.5]


def test_what_files_hold_is_found_out(tmp_path: Path) -> None:
    texts, chats = [{"text": "a"}], [{"messages": TURNS}]
    assert _guess(str(write_lines(tmp_path / "a.jsonl.gz", [*texts]))) == "json"
    assert _guess(str(write_lines(tmp_path / "b.jsonl", [*chats]))) == "chat"
    assert _guess(str(write_lines(tmp_path / "c.json", [{"conversations": []}]))) == "chat"
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "d.parquet")
    assert _guess(str(tmp_path / "d.parquet")) == "parquet"
    assert _guess(str(tmp_path / "*.parquet")) == "parquet"
    pq.write_table(pa.table({"messages": [TURNS]}), tmp_path / "e.parquet")
    assert _guess(str(tmp_path / "e.parquet")) == "chat"
    (tmp_path / "src").mkdir()
    for name in ("a.rs", "b.rs", "c.py", "read.md"):
        (tmp_path / "src" / name).write_text("x")
    assert _source(str(tmp_path / "src"), None, None) == {
        "kind": "code",
        "path": str(tmp_path / "src"),
        "extensions": [".py", ".rs"],
    }
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.md").write_text("x")
    assert _source(str(tmp_path / "pages"), None, None)["pattern"] == "*.md"
    assert _source("x.jsonl", "json", "body")["field"] == "body"
    (tmp_path / "mixed").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "mixed" / name).write_text("x")
    with pytest.raises(
        UsageError, match=r"mixed holds files of several kinds \(1 of text, 1 of json\)|1 of json, 1 of"
    ):
        _guess(str(tmp_path / "mixed"))
    with pytest.raises(UsageError, match="cannot tell what .*words.bin holds; add --kind"):
        _guess(str(tmp_path / "words.bin"))
    with pytest.raises(UsageError, match="no file or folder owner/name; for a data set of the hub add --kind hugging"):
        _guess("owner/name")


def test_the_output_says_what_went_in_and_what_was_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lm(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    texts = sentences(80, 1)
    write_lines(tmp_path / "a.jsonl", [{"text": t} for t in [*texts, texts[0], " "]])
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write("{\n")
    words = ["prepare", "a.jsonl", "--tokenizer", str(model), "--row-tokens", "64", "--out", "data", "--quiet"]
    assert run(words) == 2
    assert "a.jsonl, line 83 is not JSON" in capsys.readouterr().err
    assert not Path("data.partial").exists()
    assert run([*words, "--max-bad", "0.02", "--held-out", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "data: rows of 64 tokens" in out
    assert "json a.jsonl: 83 documents read, 80 kept; dropped: 1 too short, 1 duplicates, 1 unreadable" in out
    assert "unreadable: a.jsonl, line 83 is not JSON" in out
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["train", "validation", "test"]
    assert "% full  1 file" in out
    assert run(words) == 2
    assert "already exists" in capsys.readouterr().err
    assert open_corpus("data").record.sources[0].source["path"] == "a.jsonl"


def test_a_recipe_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "a.yaml", "--kind", "json", "--tokenizer", "m", "--out", str(tmp_path / "o")]
    assert run(words) == 2
    assert "give either one recipe or files of one kind, got a.yaml" in capsys.readouterr().err
    words = ["prepare", "a.yaml", "--trained-turns", "all", "--tokenizer", "m", "--out", str(tmp_path / "o")]
    assert run(words) == 2
    assert "--trained-turns all beside a recipe; expected it in a.yaml; set it there" in capsys.readouterr().err


def test_chats_are_trained_whole_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = make_lm(tmp_path / "base")
    write_lines(tmp_path / "a.jsonl", [{"messages": TURNS}])
    words = ["prepare", "a.jsonl", "--tokenizer", str(base), "--row-tokens", "64", "--held-out", "0"]
    assert run([*words, "--out", "answers"]) == 0
    assert run([*words, "--out", "whole", "--trained-turns", "all"]) == 0
    answers, whole = (open_corpus(name).record.splits["train"] for name in ("answers", "whole"))
    assert answers.num_trained_tokens < whole.num_trained_tokens == whole.num_tokens - 1
    words[1] = "a.txt"
    (tmp_path / "a.txt").write_text("the cat")
    assert run([*words, "--out", "text", "--trained-turns", "all"]) == 2
    assert "trained_turns: expected unset for texts, of which every token is trained, got 'all'" in (
        capsys.readouterr().err
    )
