"""The page: whole, self-contained, escaped, the same twice, and with every figure of the records in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from page_reader import PageReader
from report_examples import (
    ARMS,
    Arm,
    comparison_of,
    corpus_of,
    expansion_of,
    make_story,
    write_comparison,
    write_evaluation,
    write_run,
)

from blockexpand.records import read_record, write_record
from blockexpand.reporting import ReportRecord, report, verdict
from blockexpand.reporting.page import headline
from blockexpand.reporting.result_tables import arms_table, contrasts_table
from blockexpand.reporting.sources import Found, Material
from helpers import tree

HOSTILE = "</style></title><script>alert('$x$ {{ 7*7 }}')</script>"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """The folders of a whole story and the folder of its report."""
    root = tmp_path_factory.mktemp("story")
    folders = make_story(root)
    return folders, report(folders, root / "report").parent


@pytest.fixture(scope="module")
def page(story: tuple[list[Path], Path]) -> PageReader:
    return PageReader((story[1] / "index.html").read_text())


def test_nothing_is_fetched_and_nothing_runs(story: tuple[list[Path], Path], page: PageReader) -> None:
    html = (story[1] / "index.html").read_text()
    for sign in ("://", "src=", "@import", "<script", "xmlns"):
        assert sign not in html, sign
    assert html.count("url(") == html.count("url(#")
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("#") or value == "data:," for value in page.values("href"))
    assert "default-src 'none'" in "".join(page.values("content"))


def test_references_within_the_page_hold(story: tuple[list[Path], Path], page: PageReader) -> None:
    assert len(page.ids) == len(set(page.ids))
    referred = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    referred |= {v[5:-1] for v in page.values("clip-path")}
    assert referred <= set(page.ids)


def test_every_figure_has_words(story: tuple[list[Path], Path], page: PageReader) -> None:
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    drawings = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "role")]
    hidden = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-hidden")]
    assert len(labels) == len(drawings) == 15  # seven figures for both widths, and the stack
    assert page.tags.count("svg") == len(labels) + len(hidden)
    assert all(len(label) > 50 for label in labels)
    assert any("Block expansion: gain +0.612, forgetting +0.62 %" in label for label in labels)
    names = {path.stem for path in (story[1] / "figures").iterdir()}
    assert names == {"outcome", "frontiers", "curves", "training", "controller", "cost", "stack", "runs"}
    assert all((path.read_bytes()[:4] == b"\x89PNG") for path in (story[1] / "figures").iterdir())


def test_the_tables_are_the_records(page: PageReader) -> None:
    comparison = comparison_of()
    for table in (arms_table(comparison), contrasts_table(comparison)):
        shown = page.tables[table.name]
        assert len(shown) == len(table.rows) + 1
        for cells, row in zip(table.cells(), shown[1:], strict=True):
            for cell, text in zip(cells, row, strict=True):
                parts = [" ".join(part.split()) for part in text.split(" | ")]
                under = [line.replace("\xa0", " ") for line in cell.under]
                assert parts == [cell.main, *filter(None, [cell.interval]), *under]


def test_every_csv_has_its_table(story: tuple[list[Path], Path], page: PageReader) -> None:
    files = {path.stem: path.read_text() for path in (story[1] / "tables").iterdir()}
    assert set(files) == set(page.tables)
    for name, text in files.items():
        assert len(text.splitlines()) == len(page.tables[name]), name


def test_what_stands_at_the_top(page: PageReader) -> None:
    found = verdict(comparison_of())
    assert " ".join(page.by_id["verdict"].split()) == found.sentence
    assert found.reference in page.words
    assert "Python for the tiny base" in page.words
    for word in ("Gain is how much", "Forgetting is how much", "The budget, here 1 %,", "The frontier of a method"):
        assert word in page.words
    assert "each saw the same 1,500,000 domain tokens in the same order, mixed with the same general text" in page.words


def test_proof_answers_stages_and_settings_are_there(page: PageReader) -> None:
    proof = [[cell.strip() for cell in row] for row in page.tables["proof"]]
    assert ["holds", "greedy generation is the base's", "4 prompts, 64 tokens each"] in proof
    assert [cell.strip() for cell in page.tables["stages"][-1]] == ["All stages", "4 min 39 s", ""]
    assert "x86_64, 2 cores" in page.words
    assert "self_attn.o_proj.weight and mlp.down_proj.weight" in page.words
    shown = [part for part in ("What is 3 + 4?", "What is 17 + 5?", "hammer grape wool") if part in page.words]
    assert len(shown) == 3
    assert "What is 11 + 8?" not in page.words  # not the first that was answered rightly
    assert '"domain_tokens": 1500000' in page.words
    assert any("answers" in row[1] and row[2].strip().startswith("sha256:") for row in page.tables["sources"])


def test_the_record_names_every_file(story: tuple[list[Path], Path]) -> None:
    out = story[1]
    record = read_record(ReportRecord, out / "blockexpand.json")
    assert record.verdict == verdict(comparison_of()).sentence
    files = {name: data for name, data in tree(out).items() if name != "blockexpand.json"}
    assert record.files == {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert len(record.sources) == len({source.path for source in record.sources})


def test_the_page_is_small(story: tuple[list[Path], Path]) -> None:
    assert (story[1] / "index.html").stat().st_size < 500_000


def test_data_stays_data(tmp_path: Path) -> None:
    arms = tuple(dataclasses.replace(arm, name=f"full {HOSTILE} {arm.name}") for arm in ARMS[:2])
    comparison = comparison_of(arms)
    recipe = dataclasses.replace(comparison.recipe, base=f"models/{HOSTILE}")
    folders = [
        write_comparison(tmp_path / "compare", dataclasses.replace(comparison, recipe=recipe)),
        write_evaluation(tmp_path / "eval", {(HOSTILE, f"{HOSTILE}?", "1"): HOSTILE}),
        write_run(tmp_path / HOSTILE.replace("/", "\u2215")),
    ]
    html = report(folders, tmp_path / "out").read_text()
    page = PageReader(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert "alert('$x$ {{ 7*7 }}')" in page.words
    assert f"{HOSTILE}?" in page.words
    assert page.tags.count("style") == 1


def test_records_without_a_comparison(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval")
    out = report([folder], tmp_path / "out").parent
    page = PageReader((out / "index.html").read_text())
    assert "there is no verdict" in page.by_id["verdict"]
    assert set(page.tables) == {"evaluations", "sources"}
    assert not list((out / "figures").iterdir())
    assert json.loads((out / "blockexpand.json").read_text())["title"] == "Records of blockexpand"
    report([folder], tmp_path / "out", overwrite=True)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "expanded").mkdir()
    write_record(tmp_path / "expanded" / "blockexpand.json", expansion_of())
    folders = [tmp_path / "expanded", write_run(tmp_path / "run")]
    one, two = (report(folders, tmp_path / name).parent for name in ("one", "two"))
    assert {"figures/stack.png", "figures/runs.png", "index.html"} <= set(tree(one))
    assert tree(one) == tree(two)


def found(value: object) -> Found[object]:
    return Found(label="expanded", folder=Path("x"), value=value)


def test_a_failed_proof_comes_before_everything() -> None:
    record = expansion_of(failing="greedy generation is the base's")
    material = Material(comparison=found(comparison_of()), proofs=(found(record.proof),))  # type: ignore[arg-type]
    assert headline(material).startswith("The proof failed for expanded")
    passed = Material(proofs=(found(expansion_of().proof),), corpora=(found(corpus_of()),))  # type: ignore[arg-type]
    assert headline(passed) == "The proof holds: all 7 checks passed."


def test_sparse_comparisons_render(tmp_path: Path) -> None:
    # One arm, no budget, nothing measured on the way, no runs beside it.
    comparison = comparison_of((Arm(name="blocks", gain=0.4, forgetting=0.2),), budget=None)
    bare = [dataclasses.replace(trial, curve=()) for trial in comparison.trials]
    arms = tuple(dataclasses.replace(arm, trials=tuple(bare[1:]), frontier=()) for arm in comparison.arms)
    comparison = dataclasses.replace(comparison, arms=arms, trials=tuple(bare))
    out = report([write_comparison(tmp_path / "compare", comparison)], tmp_path / "out").parent
    page = PageReader((out / "index.html").read_text())
    assert "contrasts" not in page.tables
    assert "No forgetting budget was set" in page.words
    assert "figure-curves" not in page.ids


def test_the_controllers_trace_is_drawn_where_there_was_a_budget(tmp_path: Path) -> None:
    free = write_run(tmp_path / "free")
    kept = write_run(tmp_path / "kept", budget=0.01)
    with_budget = report([free, kept], tmp_path / "with").read_text()
    assert "How the budget was kept" in with_budget
    assert "kept: at most +2.00 %, weight from 1.00 to 2.00" in with_budget.replace("\u202f", " ").replace("\xa0", " ")
    assert "How the budget was kept" not in report([free], tmp_path / "without").read_text()


def test_a_comparison_shows_the_controller_of_each_method(page: PageReader) -> None:
    assert "How the budget was kept" in " ".join(page.text.split())
