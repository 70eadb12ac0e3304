"""What a report reads and refuses; every refusal names the folder and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_examples import (
    STAGES,
    comparison_of,
    expansion_of,
    make_story,
    plan_of,
    write_comparison,
    write_evaluation,
    write_run,
)

from blockexpand.errors import RecordError, ReportError, StagingError
from blockexpand.records import write_record
from blockexpand.reporting import Stage, Stages, read_stages, report
from blockexpand.reporting.sources import gather
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
    assert len(found.compared_runs) == 5
    assert [e.label for e in found.evaluations] == ["before", "after"]
    assert [len(kind) for kind in (found.expansions, found.proofs, found.runs, found.corpora)] == [1, 1, 1, 1]
    assert found.stages == STAGES
    formats = {source.format for source in found.sources}
    assert {"blockexpand.comparison", "blockexpand.run", "metrics", "answers", "blockexpand.stages"} <= formats
    assert all(source.digest.startswith("sha256:") for source in found.sources)


def test_folders_of_one_name_get_longer_labels(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / a / "eval") for a in ("x", "y")]
    assert [e.label for e in gather(folders).evaluations] == ["x/eval", "y/eval"]


def test_a_comparison_shows_its_own_expansions_once(tmp_path: Path) -> None:
    compare = write_comparison(tmp_path / "compare", comparison_of())
    for name, plan in (("2-5-9", plan_of()), ("4-9", plan_of(groups=2))):
        (compare / "expanded" / name).mkdir(parents=True)
        write_record(compare / "expanded" / name / "blockexpand.json", expansion_of(plan))
    (tmp_path / "mine").mkdir()
    write_record(tmp_path / "mine" / "blockexpand.json", expansion_of())
    assert [e.label for e in gather([tmp_path / "mine", compare]).expansions] == ["mine", "4-9"]


def test_stages_are_saved_and_checked(tmp_path: Path) -> None:
    assert read_stages(STAGES.save(tmp_path).parent) == STAGES
    assert STAGES.total_seconds == pytest.approx(278.71)
    with pytest.raises(RecordError, match=r"seconds: expected 0 or more, got -1"):
        Stage(name="x", seconds=-1)
    with pytest.raises(RecordError, match=r"stages: expected at least one stage, got \[\]"):
        Stages(versions={}, stages=())


def test_nothing_given(tmp_path: Path) -> None:
    assert "no folder was given" in refused([], tmp_path / "out")


def test_missing_folder(tmp_path: Path) -> None:
    said = refused([tmp_path / "gone"], tmp_path / "out")
    assert f"cannot report on {tmp_path / 'gone'}: there is no such folder; expected a folder that compare" in said


def test_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    file = tmp_path / "comparison.json"
    file.write_text("{}")
    assert "it is a file; expected" in refused([file], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "it holds no comparison.json, no blockexpand.json" in refused([tmp_path / "empty"], tmp_path / "out")


def test_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "blockexpand.json").write_text('{"format": "blockexpand.evaluations"}')
    said = refused([tmp_path / "x"], tmp_path / "out")
    assert "its format is 'blockexpand.evaluations'" in said
    assert "did you mean 'blockexpand.evaluation'" in said
    (tmp_path / "x" / "blockexpand.json").write_text("[1]")
    assert "it does not say its format" in refused([tmp_path / "x"], tmp_path / "out")


def test_damaged_records(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compare", comparison_of())
    edit_json(folder / "comparison.json", lambda data: data.update(base=3))
    assert f"{folder / 'comparison.json'}.base: expected a mapping, got 3" in refused([folder], tmp_path / "out")
    (folder / "comparison.json").write_text('{"format": "blockexpand.compar')
    assert "is not JSON" in refused([folder], tmp_path / "out")
    evaluation = write_evaluation(tmp_path / "eval")
    (evaluation / "losses-general.npz").write_bytes(b"PK nonsense")
    assert f"cannot report on {evaluation / 'blockexpand.json'}" in refused([evaluation], tmp_path / "out")
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("not json\n")
    assert f"cannot report on {run / 'blockexpand.json'}" in refused([run], tmp_path / "out")


def test_a_newer_version(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compare", comparison_of())
    edit_json(folder / "comparison.json", lambda data: data.update(format_version=99))
    assert "format version 99, this blockexpand reads 1" in refused([folder], tmp_path / "out")


def test_a_run_outside_of_the_comparison(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "compare", comparison_of())
    edit_json(folder / "comparison.json", lambda data: data["trials"][0].update(run="../secret"))
    assert "the run '../secret' is outside its folder" in refused([folder], tmp_path / "out")


def test_twice_the_same_and_two_comparisons(tmp_path: Path) -> None:
    first = write_comparison(tmp_path / "a", comparison_of())
    second = write_comparison(tmp_path / "b", comparison_of())
    assert "was given twice" in refused([first, tmp_path / "b" / ".." / "a"], tmp_path / "out")
    said = refused([first, second], tmp_path / "out")
    assert f"2 comparisons were given ({first}, {second}); expected at most one" in said


def test_the_output_is_checked_first(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval")
    before = json.loads((folder / "blockexpand.json").read_text())
    for out in (folder, tmp_path):
        with pytest.raises(ReportError, match=f"the output {out} is, or contains, the folder {folder}"):
            report([folder], out, overwrite=True)
    assert json.loads((folder / "blockexpand.json").read_text()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(StagingError, match="already exists"):
        report([folder], tmp_path / "out")
