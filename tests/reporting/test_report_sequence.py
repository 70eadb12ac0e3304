"""The page of tasks learnt in a row: its sentence, matrices, figures, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_reader import PageReader

from blockexpand.comparison.results import Summary
from blockexpand.errors import ReportError
from blockexpand.records import write_record
from blockexpand.records.intervals import Interval
from blockexpand.reporting import SequenceRecord, report
from blockexpand.reporting.sequence_tables import sequence_tables
from blockexpand.reporting.sequences import (
    TaughtChain,
    TaughtContrast,
    TaughtMethod,
    TaughtTask,
    sequence_sentence,
)
from browser import browser, find_chromium

TASKS = ("classification", "extraction", "code", "sums", "stories", "simplification")
NAMES = ("one set of blocks", "a pack for each task", "full", "LoRA", "old <blocks>")
HELD = [0.35, 1.0, 0.15, 0.1, 0.55]
"""The share of what was learnt that is there at the end."""


def chain_of(held: float, seed: int) -> TaughtChain:
    """A row in which each task is learnt to about 0.9 and fades to `held` of it."""
    own = 0.9 - 0.02 * seed
    fading = [[own * (1 - (1 - held) * (t - i) / 5) if i <= t else 0.05 for i in range(6)] for t in range(6)]
    return TaughtChain(
        seed=seed,
        matrix=tuple(map(tuple, fading)),
        general_losses=tuple(3.5 + 0.3 * (1 - held) * (t + 1) for t in range(6)),
        num_trainable_parameters=2_951_168,
        cpu_seconds=80.0,
        runs=tuple(f"sha256:{seed}{t:063}" for t in range(6)),
    )


def method_of(name: str, held: float, seeds: int) -> TaughtMethod:
    chains = tuple(chain_of(held, seed) for seed in range(seeds))
    ops = [float(np.mean(one.matrix[-1])) for one in chains]
    bwts = [float(np.mean(np.array(one.matrix[-1]) - np.diagonal(one.matrix))) for one in chains]
    op, bwt = float(np.mean(ops)), float(np.mean(bwts))
    return TaughtMethod(
        name=name,
        trains="every parameter" if name == "full" else "4 new blocks, interleaved",
        lr=0.02,
        packs="pack" in name,
        chains=chains,
        op=Summary(mean=op, low=op - 0.06, high=op + 0.06),
        bwt=Summary(mean=bwt, low=bwt - 0.05, high=bwt + 0.05),
        rise=Summary(mean=0.5 * (1 - held), low=0.4 * (1 - held), high=0.6 * (1 - held)),
    )


def record_of(seeds: int = 3) -> SequenceRecord:
    methods = tuple(method_of(name, held, seeds) for name, held in zip(NAMES, HELD, strict=True))
    contrasts = tuple(
        TaughtContrast(
            ours=NAMES[0],
            theirs=one.name,
            op=Interval(difference=d, low=d - 0.05, high=d + 0.05),
            bwt=Interval(difference=d, low=d - 0.05, high=d + 0.05),
            general=Interval(difference=-d, low=-d - 0.05, high=-d + 0.05),
        )
        for one, d in zip(methods[1:], (-0.3, 0.1, 0.12, 0.02), strict=True)
    )
    return SequenceRecord(
        title="Tasks in a row",
        question="What is left?",
        paper="nothing of it",
        base="tiny",
        base_digest="sha256:" + "0123456789abcdef" * 4,
        base_general_loss=3.5,
        num_general_tokens=6_000,
        tokens_per_task=8_000,
        rehearses=False,
        tasks=tuple(
            TaughtTask(name=name, like="Py150", measure="whole", base=0.04, num_train=300, num_test=50)
            for name in TASKS
        ),
        methods=methods,
        contrasts=contrasts,
        settings={"sequence": {"tasks": list(TASKS)}},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of a row of tasks."""
    root = tmp_path_factory.mktemp("row")
    write_record(root / "row" / "sequence.json", record_of())
    return report([root / "row"], root / "report").parent


@pytest.fixture(scope="module")
def page(folder: Path) -> PageReader:
    return PageReader((folder / "index.html").read_text())


def test_the_sentence_says_what_intervals_allow() -> None:
    assert sequence_sentence(record_of()) == (
        "After 6 tasks in a row, one set of blocks has a mean score of 59 % (\u221229 points of what it had right "
        "after each task), and the general loss is +32.5 %. Its mean score is higher than with full and LoRA; lower "
        "than with a pack for each task; not to be told apart from old <blocks>."
    )
    alone = dataclasses.replace(record_of(), contrasts=())
    assert sequence_sentence(alone).endswith("the general loss is +32.5 %.")


def test_the_page_is_whole_and_fetches_nothing(folder: Path, page: PageReader) -> None:
    html = (folder / "index.html").read_text()
    for sign in ("://", "src=", "@import", "<script", "xmlns", "old <blocks>"):
        assert sign not in html, sign
    assert html.count("url(") == html.count("url(#")
    assert all(value.startswith("#") or value == "data:," for value in page.values("href"))
    assert " ".join(page.by_id["verdict"].split()) == sequence_sentence(record_of())
    assert len(page.ids) == len(set(page.ids))
    for word in ("R is a matrix", "OP, overall performance", "nothing rehearsed", "3 seeds", "sha256:0123456789abcdef"):
        assert word in page.words


def test_every_figure_has_words_and_a_picture(folder: Path, page: PageReader) -> None:
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == 4  # two figures, for both widths
    assert any("one set of blocks: OP 59 %, BWT \u221229 points" in label for label in labels)
    assert any("the base has 3.500" in label for label in labels)
    assert {path.name for path in (folder / "figures").iterdir()} == {"row-outcome.png", "row-general.png"}
    assert all((path.read_bytes()[:4] == b"\x89PNG") for path in (folder / "figures").iterdir())


def test_matrices_are_shaded_by_their_scores(folder: Path, page: PageReader) -> None:
    record = record_of()
    assert {f"matrix-{n}" for n in range(1, 6)} < set(page.tables)
    shown = page.tables["matrix-1"]
    assert [row[0].strip() for row in shown[1:]] == ["nothing (the base)", *TASKS]
    assert [cell.strip() for cell in shown[2][1:]] == ["88 %", "5 %", "5 %", "5 %", "5 %", "5 %"]
    heats = [value for _, name, value in page.attributes if name == "style" and value.startswith("--heat")]
    assert len(heats) == len(record.methods) * 7 * 6
    assert heats[:7] == ["--heat: 2%"] * 6 + ["--heat: 48%"]
    with (folder / "tables" / "matrix-1.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["after", *TASKS]
    assert [float(value) for value in rows[-1][1:]] == record.methods[0].matrix_TT[-1].tolist()


def test_every_csv_has_its_table(folder: Path, page: PageReader) -> None:
    files = {path.stem: path.read_text() for path in (folder / "tables").iterdir()}
    assert set(files) == set(page.tables)
    for name, text in files.items():
        assert len(text.splitlines()) == len(page.tables[name]), name
    stages = page.tables["row-stages"]
    assert len(stages) == 1 + 5 * 3 * 6
    assert stages[1][-1].strip() == f"sha256:0{0:063}"


def test_packs_and_a_single_seed_are_told(tmp_path: Path) -> None:
    notes = " ".join(note for table in sequence_tables(record_of(seeds=1)) for note in table.notes)
    assert "over questions and documents: there is one seed" in notes
    assert "BWT is zero by construction" in notes
    bare = dataclasses.replace(record_of(), methods=record_of().methods[:1], contrasts=())
    notes = " ".join(note for table in sequence_tables(bare) for note in table.notes)
    assert "over seeds (Student\u2019s t)" in notes
    assert "by construction" not in notes
    write_record(tmp_path / "row" / "sequence.json", bare)
    assert "row-contrasts" not in report([tmp_path / "row"], tmp_path / "out").read_text()


def choosing_record() -> SequenceRecord:
    """As `record_of`, and in the second method each question chooses its pack."""
    record = record_of()
    rows = tuple(tuple(0.9 if c == t + 1 else 0.1 if c == 0 else 0.0 for c in range(7)) for t in range(6))
    chains = tuple(dataclasses.replace(chain, chosen=rows) for chain in record.methods[1].chains)
    chooses = dataclasses.replace(record.methods[1], told=False, chains=chains)
    return dataclasses.replace(record, methods=(record.methods[0], chooses, *record.methods[2:]))


def test_what_questions_chose_is_a_table(tmp_path: Path) -> None:
    write_record(tmp_path / "row" / "sequence.json", choosing_record())
    text = report([tmp_path / "row"], tmp_path / "out").read_text()
    table = PageReader(text).tables["chosen-2"]
    assert [cell.strip() for cell in table[0]] == ["Questions of", "the base", *TASKS]
    shares = ["10 %", *("90 %" if n == 2 else "0 %" for n in range(6))]
    assert [" ".join(cell.split()) for cell in table[3]] == ["code", *shares]
    assert "each question and each general text chooses" in text
    assert "by construction" not in text
    assert "its last pack on" not in text
    assert "with its last pack on" in report([write_row(tmp_path / "told")], tmp_path / "b").read_text()


def write_row(folder: Path) -> Path:
    write_record(folder / "sequence.json", record_of())
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chain: chain.update(chosen=chain["chosen"][:2]), r"chosen: expected 6 rows of 7 shares, got \[7, 7\]"),
        (lambda chain: chain.pop("chosen"), r"chosen: expected what each question chose, .*got \[False, True, True\]"),
    ],
)
def test_choices_that_are_no_choices_are_refused(tmp_path: Path, change: Callable[[dict], object], words: str) -> None:
    path = tmp_path / "row" / "sequence.json"
    write_record(path, choosing_record())
    data = json.loads(path.read_text())
    change(data["methods"][1]["chains"][0])
    path.write_text(json.dumps(data))
    with pytest.raises(ReportError, match=words):
        report([tmp_path / "row"], tmp_path / "out")


def test_a_damaged_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "row" / "sequence.json"
    write_record(path, record_of())
    data = json.loads(path.read_text())
    data["methods"][0]["chains"][0]["matrix"][2].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(ReportError, match=r"sequence\.json: .*matrix: expected 6 rows of 6 scores, got \[6, 6, 5,"):
        report([tmp_path / "row"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_rows_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_record(tmp_path / name / "sequence.json", record_of())
    with pytest.raises(ReportError, match="2 rows of tasks were given .*expected at most one"):
        report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


@pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")
def test_rows_on_screens(folder: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for width, scheme in ((390, "dark"), (1280, "light")):
            tab.open(folder / "index.html", width, scheme)
            assert tab.value("document.scrollingElement.scrollWidth") <= width
            shades = "new Set([...document.querySelectorAll('#table-matrix-1 td')].map(c => getComputedStyle(c)."
            assert tab.value(shades + "backgroundColor)).size") > 5
            assert len(tab.photograph()) > 50_000
