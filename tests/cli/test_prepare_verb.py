"""The verb `prepare`: with a recipe and without one, and what it says of what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.cli.main import run
from blockexpand.corpus import load_recipe, open_corpus
from lm_helpers import make_lm, sentences

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("prepare-*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_resolves(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.row_tokens == 4096
    assert recipe.weights_hold("train")
    assert not recipe.weights_hold("validation")
    if path.name == "prepare-code-math.yaml":  # table 6: Proof-Pile-2 at 1.00, The Stack's Python at 1.50
        assert [source.epochs for source in recipe.sources] == [1.0, 1.0, 1.0, 1.5]


def test_the_output_says_what_went_in_and_what_was_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lm(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    texts = sentences(80, 1)
    lines = "".join(json.dumps({"text": t}) + "\n" for t in [*texts, texts[0], " "])
    Path("a.jsonl").write_text(lines + "{\n")
    words = ["prepare", "a.jsonl", "--tokenizer", str(model), "--row-tokens", "64", "--out", "data", "--quiet"]
    assert run(words) == 2
    assert "a.jsonl, line 83" in capsys.readouterr().err
    assert not Path("data.partial").exists()
    assert run([*words, "--max-bad", "0.02", "--held-out", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "a.jsonl (table, text): 83 documents read, 80 kept" in out
    assert "1 empty, 1 duplicates, 1 unreadable" in out
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["train", "validation", "test"]
    assert run(words) == 2
    assert "data" in capsys.readouterr().err
    assert open_corpus("data").record.sources[0].source == {
        "path": "a.jsonl",
        "kind": "table",
        "columns": "text",
        "field": "text",
    }
    Path("one.txt").write_text("\n\n".join(texts))
    words[1] = "one.txt"
    assert run([*words[:-2], "text", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sources"][0]["source"]["separator"] == "blank lines"
    assert record["sources"][0]["num_kept"] > 20


def test_a_recipe_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--kind", "text"], ["b.jsonl"]):
        assert run(["prepare", "a.yaml", *more, "--tokenizer", "m", "--out", str(tmp_path / "o")]) == 2
        assert "a.yaml" in capsys.readouterr().err
