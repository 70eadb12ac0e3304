"""What a report reads and refuses; every refusal names the folder and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_examples import comparison_of, make_story, write_comparison, write_evaluation, write_run

from blockexpand.errors import ReportError, StagingError
from blockexpand.reporting import report
from blockexpand.reporting.sources import gather, model_name
from helpers import edit_json


def refused(folders: list[Path], out: Path) -> str:
    with pytest.raises(ReportError) as caught:
        report(folders, out)
    assert not out.exists()
    assert not list(out.parent.glob(".*partial*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_is_recognised(tmp_path: Path) -> None:
    found = gather(make_story(tmp_path))
    assert found.comparison is not None
    assert found.comparison.label == "compare"
    assert [e.label for e in found.evaluations] == ["before", "after"]
    assert [len(kind) for kind in (found.expansions, found.proofs, found.runs, found.corpora)] == [1, 1, 1, 1]
    formats = {source.format for source in found.sources}
    assert {"blockexpand.comparison", "blockexpand.run", "metrics.jsonl"} <= formats
    assert all(source.digest.startswith("sha256:") for source in found.sources)


def test_names_are_those_of_models_and_told_apart(tmp_path: Path) -> None:
    assert model_name("runs/first/model") == "first"
    assert model_name("org/name") == "name"
    folders = [write_evaluation(tmp_path / a / "eval") for a in ("x", "y")]
    for folder in folders:
        edit_json(folder / "blockexpand.json", lambda data: data.update(model="runs/first/model"))
    assert [e.label for e in gather(folders).evaluations] == ["first (x/eval)", "first (y/eval)"]


def test_what_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no folder was given" in refused([], out)
    assert str(tmp_path / "gone") in refused([tmp_path / "gone"], out)
    file = tmp_path / "comparison.json"
    file.write_text("{}")
    assert str(file) in refused([file], out)
    (tmp_path / "x").mkdir()
    assert str(tmp_path / "x") in refused([tmp_path / "x"], out)
    (tmp_path / "x" / "blockexpand.json").write_text('{"format": "blockexpand.evaluations"}')
    said = refused([tmp_path / "x"], out)
    assert "'blockexpand.evaluations'" in said
    assert "'blockexpand.evaluation'" in said
    (tmp_path / "x" / "blockexpand.json").write_text("[1]")
    assert "None" in refused([tmp_path / "x"], out)


def test_damaged_records(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compare", comparison_of())
    edit_json(folder / "comparison.json", lambda data: data.update(base=3))
    assert f"{folder / 'comparison.json'}.base" in refused([folder], tmp_path / "out")
    (folder / "comparison.json").write_text('{"format": "blockexpand.compar')
    assert str(folder) in refused([folder], tmp_path / "out")
    evaluation = write_evaluation(tmp_path / "eval")
    (evaluation / "losses-general.npz").write_bytes(b"PK nonsense")
    assert str(evaluation / "blockexpand.json") in refused([evaluation], tmp_path / "out")
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("not json\n")
    assert str(run / "blockexpand.json") in refused([run], tmp_path / "out")


def test_a_newer_version_and_a_run_outside_of_the_comparison(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compare", comparison_of())
    edit_json(folder / "comparison.json", lambda data: data.update(format_version=99))
    assert "99" in refused([folder], tmp_path / "out")
    other = write_comparison(tmp_path / "other", comparison_of())
    edit_json(other / "comparison.json", lambda data: data["arms"][0]["trials"][0].update(run="../secret"))
    assert "'../secret'" in refused([other], tmp_path / "out")


def test_twice_the_same_and_two_comparisons(tmp_path: Path) -> None:
    first = write_comparison(tmp_path / "a", comparison_of())
    second = write_comparison(tmp_path / "b", comparison_of())
    assert "given twice" in refused([first, tmp_path / "b" / ".." / "a"], tmp_path / "out")
    assert f"({first}, {second})" in refused([first, second], tmp_path / "out")


def test_the_output_is_checked_first(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval")
    before = json.loads((folder / "blockexpand.json").read_text())
    for out in (folder, tmp_path):
        with pytest.raises(ReportError):
            report([folder], out, overwrite=True)
    assert json.loads((folder / "blockexpand.json").read_text()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(StagingError):
        report([folder], tmp_path / "out")


def test_neither_torch_nor_transformers_is_loaded(tmp_path: Path) -> None:
    folders = [str(folder) for folder in make_story(tmp_path)]
    code = (
        "import sys\nfrom blockexpand.cli.main import run\n"
        f"assert run(['report', *{folders!r}, '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
