"""The page: whole, self-contained, escaped, the same twice, and with every figure of the records in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from page_reader import PageReader
from report_examples import (
    ARMS,
    DIGEST,
    Arm,
    comparison_of,
    corpus_of,
    expansion_of,
    make_story,
    write_comparison,
    write_evaluation,
    write_run,
)

from blockexpand.cli.main import run
from blockexpand.records import read_record, write_record
from blockexpand.records.budget import BudgetStatement, TextKept, say_budget
from blockexpand.records.evaluation import PartScore, SuiteResults, TaskScore, read_evaluation
from blockexpand.records.learn import DataSeen, LearnPlan, LearnRecord, LearnSettings, Learnt, Said
from blockexpand.reporting import ReportRecord, report, verdict
from blockexpand.reporting.comparison_tables import arms_table, contrasts_table
from helpers import tree

HOSTILE = "</style></title><script>alert('$x$ {{ 7*7 }}')</script>"
STATEMENT = BudgetStatement(
    level=0.95,
    method="t",
    least_documents=8,
    scale=0.8,
    texts=(
        TextKept(
            text="chats",
            budget=0.01,
            num_documents=64,
            num_tokens=9_000,
            rise=0.0042,
            bound=0.0091,
            documents_needed=None,
        ),
    ),
)


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
    for sign in ("://", "@import", "<script", "url("):
        assert sign not in html, sign
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value == "data:," for value in page.values("href"))
    assert all(value.startswith("data:image/svg+xml;base64,") for value in page.values("src"))
    assert "default-src 'none'" in "".join(page.values("content"))
    assert len(page.ids) == len(set(page.ids))
    assert (story[1] / "index.html").stat().st_size < 1_000_000


def test_every_drawing_has_words_and_a_file(story: tuple[list[Path], Path], page: PageReader) -> None:
    words = page.values("alt")
    assert len(words) == 4
    assert all(len(one) > 20 for one in words)
    assert {path.name for path in (story[1] / "figures").iterdir()} == {
        "outcome.svg",
        "frontier.svg",
        "course.svg",
        "stack.svg",
    }


def test_the_tables_are_the_records_and_every_one_is_a_file(story: tuple[list[Path], Path], page: PageReader) -> None:
    comparison = comparison_of()
    for table in (arms_table(comparison), contrasts_table(comparison)):
        shown = page.tables[table.name]
        assert len(shown) == len(table.rows) + 1
        for cells, row in zip(table.cells(), shown[1:], strict=True):
            for cell, text in zip(cells, row, strict=True):
                parts = [" ".join(part.split()) for part in text.split(" | ")]
                under = [line.replace("\xa0", " ") for line in cell.under]
                assert parts == [cell.main, *filter(None, [cell.interval]), *under]
    files = {path.stem: path.read_text() for path in (story[1] / "tables").iterdir()}
    assert set(files) == set(page.tables)
    for name, text in files.items():
        assert len(text.splitlines()) == len(page.tables[name]), name


def test_what_stands_on_the_page(story: tuple[list[Path], Path], page: PageReader) -> None:
    found = verdict(comparison_of())
    assert " ".join(page.by_id["verdict"].split()) == found.sentence
    assert found.reference in page.words
    proof = [[cell.strip() for cell in row] for row in page.tables["proof"]]
    assert ["holds", "greedy generation is the base's", "4 prompts, 64 tokens each"] in proof
    assert '"domain_tokens": 1500000' in page.words
    assert [row[0].strip() for row in page.tables["runs"][1:]] == ["instruct"]


def test_the_record_names_every_file(story: tuple[list[Path], Path]) -> None:
    out = story[1]
    record = read_record(ReportRecord, out / "blockexpand.json")
    assert record.verdict == verdict(comparison_of()).sentence
    files = {name: data for name, data in tree(out).items() if name != "blockexpand.json"}
    assert record.files == {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert len(record.sources) == len({source.path for source in record.sources})


def test_data_stays_data(tmp_path: Path) -> None:
    arms = tuple(dataclasses.replace(arm, name=f"full {HOSTILE} {arm.name}") for arm in ARMS[:2])
    comparison = comparison_of(arms)
    recipe = dataclasses.replace(comparison.recipe, base=f"models/{HOSTILE}")
    folders = [
        write_comparison(tmp_path / "compare", dataclasses.replace(comparison, recipe=recipe)),
        write_evaluation(tmp_path / "eval"),
        write_run(tmp_path / HOSTILE.replace("/", "\u2215")),
    ]
    html = report(folders, tmp_path / "out").read_text()
    page = PageReader(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert HOSTILE in page.words
    assert page.tags.count("style") == 1


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "expanded").mkdir()
    write_record(tmp_path / "expanded" / "blockexpand.json", expansion_of())
    folders = [tmp_path / "expanded", write_run(tmp_path / "run")]
    one, two = (report(folders, tmp_path / name).parent for name in ("one", "two"))
    assert {"figures/stack.svg", "figures/course.svg", "index.html"} <= set(tree(one))
    assert tree(one) == tree(two)


def test_a_failed_proof_comes_before_everything(tmp_path: Path) -> None:
    (tmp_path / "expanded").mkdir()
    broken = expansion_of(failing="greedy generation is the base's")
    write_record(tmp_path / "expanded" / "blockexpand.json", broken)
    compare = write_comparison(tmp_path / "compare", comparison_of())
    page = PageReader(report([compare, tmp_path / "expanded"], tmp_path / "out").read_text())
    assert page.by_id["verdict"].startswith("The proof failed for expanded")


def test_sparse_comparisons_render(tmp_path: Path) -> None:
    # One arm, no budget, nothing measured on the way, no runs beside it.
    comparison = comparison_of((Arm(name="blocks", gain=0.4, forgetting=0.2),), budget=None)
    bare = [dataclasses.replace(trial, curve=()) for trial in comparison.trials]
    arms = tuple(dataclasses.replace(arm, trials=tuple(bare[1:]), frontier=()) for arm in comparison.arms)
    comparison = dataclasses.replace(comparison, arms=arms, trials=tuple(bare))
    out = report([write_comparison(tmp_path / "compare", comparison)], tmp_path / "out").parent
    page = PageReader((out / "index.html").read_text())
    assert "contrasts" not in page.tables
    assert "no budget was set" in page.words
    assert "figure-course" not in page.ids


def test_nothing_inside_the_budget_is_said_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(ARMS[:2])
    arms = tuple(
        dataclasses.replace(arm, trials=tuple(dataclasses.replace(t, kept_nothing=True) for t in arm.trials))
        for arm in comparison.arms
    )
    comparison = dataclasses.replace(comparison, arms=arms)
    page = PageReader(report([write_comparison(tmp_path / "compare", comparison)], tmp_path / "out").read_text())
    assert verdict(comparison).outcome == "nothing inside"
    assert page.by_id["verdict"].startswith("Nothing inside the budget")
    assert all("nothing inside" in row[3] for row in page.tables["methods"][1:])
    monkeypatch.setattr("blockexpand.comparison.load_recipe", lambda *_: comparison.recipe)
    monkeypatch.setattr("blockexpand.comparison.compare", lambda *_: comparison)
    assert run(["compare", "recipe.yaml"]) == 1
    assert "NOTHING INSIDE THE BUDGET" in capsys.readouterr().err


# --- evaluations ----------------------------------------------------------------------------------------


def test_evaluations_are_paired_and_named_by_their_models(tmp_path: Path) -> None:
    before, after = write_evaluation(tmp_path / "before"), write_evaluation(tmp_path / "after", loss=3.4)
    page = PageReader(report([before, after], tmp_path / "out").read_text())
    (changed,) = [[" ".join(cell.split()) for cell in row] for row in page.tables["changes"][1:]]
    assert changed[:3] == ["after", "before", "general"]
    assert changed[3].startswith("+0.2")
    assert changed[5:] == ["worse", "212"]
    assert page.by_id["verdict"].startswith("after against before on general: +0.2")
    alone = PageReader(report([before], tmp_path / "alone").read_text())
    assert set(alone.tables) == {"evaluations", "sources"}
    assert alone.by_id["verdict"] == "before: measured, and compared with nothing."


def test_too_few_documents_carry_no_interval(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / "before"), write_evaluation(tmp_path / "after", loss=3.4)]
    for number, folder in enumerate(folders):
        one = np.full(1, 3.0 + number)
        np.savez(folder / "losses-general.npz", nats=one, tokens=np.ones(1, dtype=np.int64))
    page = PageReader(report(folders, tmp_path / "out").read_text())
    (row,) = page.tables["changes"][1:]
    assert " ".join(row[3].split()) == "+1.000"
    assert "too few" in row[5]


def test_suites_have_a_table_with_chance_and_errors(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval")
    record = read_evaluation(folder).record
    part = PartScore(value=0.4, num_samples=20, version="1", source="file", digest=DIGEST)
    task = TaskScore(
        suite="general",
        suite_version=1,
        side="general",
        metric="acc",
        value=0.4,
        higher_is_better=True,
        mean="samples",
        low=0.22,
        high=0.61,
        chance=0.25,
        shots=5,
        num_samples=20,
        num_errors=1,
        num_cut=0,
        others={},
        parts={"all": part},
    )
    suites = SuiteResults(
        tasks={"arc": task},
        chat=False,
        batch_size=8,
        samples=1,
        seeds={},
        window_tokens=None,
        stride_tokens=None,
    )
    write_record(folder / "blockexpand.json", dataclasses.replace(record, suites=suites))
    page = PageReader(report([folder], tmp_path / "out").read_text())
    (row,) = [[" ".join(cell.split()) for cell in row] for row in page.tables["suites"][1:]]
    assert row == ["arc", "general", "acc", "0.400 | 0.220 to 0.610", "0.250", "20", "1", "5 shots"]


def test_what_learn_came_to_is_the_first_thing(tmp_path: Path) -> None:
    asked = LearnSettings(
        model="models/tiny", model_digest=DIGEST, data=("d",), data_digest=DIGEST, keep={"general": 0.01}
    )
    plan_values = {f.name: 1 for f in dataclasses.fields(LearnPlan)} | {
        "after": (1,), "data": DataSeen(kind="texts", num_documents=1, num_tokens=1), "optimizer": "muon",
        "precision": "float32", "device": "cpu", "warnings": (),
    }  # fmt: skip
    learnt = Learnt(
        arm="blocks",
        lr=0.02,
        num_trained=10,
        num_steps=5,
        domain_before=3.0,
        domain_after=2.4,
        gain_low=0.5,
        gain_high=0.7,
        num_test_documents=40,
        budget=STATEMENT,
        bypass_is_base=True,
        tokens_per_second=1.0,
        memory_bytes=1,
    )
    record = LearnRecord(
        blockexpand_version="0.1.0",
        out="out",
        settings=asked,
        plan=LearnPlan(**plan_values),
        learnt=learnt,
        said=(Said(prompt="def f(", before="the river", after="self):"),),
    )
    page = PageReader(report([write_run(tmp_path / "run")], tmp_path / "out", learnt=record).read_text())
    assert "3.000 to 2.400" in page.by_id["verdict"]
    assert say_budget(STATEMENT) in " ".join(page.by_id["verdict"].split())
    for words in ("+0.600", "+0.500 to +0.700", "at most +0.91 %", "the river", "self):"):
        assert words in page.words, words


def test_a_report_is_never_empty_with_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_evaluation(tmp_path / "eval")
    record = read_evaluation(folder).record
    write_record(folder / "blockexpand.json", dataclasses.replace(record, held_out={}, corpora={}))
    assert run(["report", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "texts").mkdir()
    write_record(tmp_path / "texts" / "blockexpand.json", corpus_of())
    assert run(["report", str(tmp_path / "texts"), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "blockexpand.json").read_text())["files"]["tables/texts.csv"]
