"""Paired differences of two models on suites, and the verdict by a forgetting budget, up to the exit code."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexpand.cli.main import run
from blockexpand.errors import EvaluationError, RecordError
from blockexpand.evaluation.measurement import evaluate
from blockexpand.evaluation.verdict import compare_records, flips_of, judge, state_budget
from blockexpand.records.evaluation import Difference, read_samples, write_samples
from blockexpand.records.intervals import Interval, mean_difference
from blockexpand.staging import RECORD_NAME
from lm_helpers import make_corpus, make_lm
from servers import completion, serving
from suite_ground import make_suite

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verdict")
    make_lm(folder / "base")
    make_lm(folder / "other", seed=1)
    make_suite(folder, count=40)
    for name in ("base", "other"):
        assert run(["eval", str(folder / name), "--suite", str(folder / "own.yaml"), *out(folder / f"{name}-r")]) == 0
    return folder


def out(path: Path) -> list[str]:
    return ["--out", str(path), "--quiet"]


def test_a_model_differs_from_itself_by_nothing_and_from_another_in_pairs(ground: Path) -> None:
    same = compare_records(ground / "base-r", ground / "base-r")
    assert set(same) == {"deeds", "words", "tales"}
    assert all(one.is_noise and one.better_by == 0 for one in same.values())
    apart = compare_records(ground / "other-r", ground / "base-r")
    ours, theirs = ([s.scores["acc"] for s in read_samples(ground / f"{n}-r", "deeds")] for n in ("other", "base"))
    expected = mean_difference(ours, theirs)
    deeds = apart["deeds"]
    assert deeds.interval is not None
    assert (deeds.interval.low, deeds.interval.high) == pytest.approx((expected.low, expected.high))
    assert deeds.flips is not None
    assert deeds.flips.num_lost == sum(o < t for o, t in zip(ours, theirs, strict=True))
    assert deeds.flips.num_gained == sum(o > t for o, t in zip(ours, theirs, strict=True))
    assert deeds.better_by == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (deeds.side, deeds.num_pairs, deeds.num_unanswered) == ("domain", 40, 0)
    tales = apart["tales"]
    assert (tales.side, tales.unit) == ("general", "bits/byte")
    assert tales.better_by == pytest.approx(1 - tales.ours / tales.theirs)
    assert tales.interval is not None
    assert tales.interval.difference == pytest.approx(tales.ours - tales.theirs)


def one(side: Any, better_by: float, *, noise: bool = False, unanswered: int = 0) -> Difference:
    low, high = (-1.0, 1.0) if noise else (better_by, better_by)
    return Difference(
        side=side,
        unit="share",
        ours=0.5,
        theirs=0.5,
        interval=Interval(difference=better_by, low=low, high=high),
        num_pairs=9,
        num_unanswered=unanswered,
        better_by=better_by,
    )


def test_the_verdict() -> None:
    kept, lost = one("general", -0.01), one("general", -0.011)
    gained, worse, unclear = one("domain", 0.1), one("domain", -0.02), one("domain", 0.1, noise=True)
    passed = judge({"arc": kept, "code": gained, "other": one(None, -0.5)}, 0.01)
    assert passed.passed
    assert (passed.gained, passed.most_lost, passed.reasons) == (0.1, 0.01, ())
    for found, words in [
        ({"arc": lost, "code": gained}, "arc lost 1.10 points, more than the budget of 1"),
        ({"arc": kept, "code": gained, "law": worse}, "law is worse by 2.00 points, more than noise"),
        ({"arc": kept, "code": unclear}, r"the domain's gain of \+10.00 may be noise; measure more samples"),
        ({"arc": kept, "code": one("domain", 0.0, noise=True)}, r"the domain is not better: \+0.00 in the mean of c"),
        ({"arc": kept, "code": one("domain", 0.1, unanswered=2)}, "code: 2 samples have no answer"),
    ]:
        verdict = judge(found, 0.01)
        assert not verdict.passed
        assert any(re.search(words, reason) for reason in verdict.reasons), verdict.reasons
    with pytest.raises(EvaluationError, match="nothing domain"):
        judge({"arc": kept}, 0.01)
    with pytest.raises(EvaluationError, match="nothing general"):
        judge({"code": gained}, 0.01)
    with pytest.raises(RecordError, match=r"budget: expected 0 or more and below 1, e\.g\. 0\.01, got 1"):
        judge({"arc": kept, "code": gained}, 1)


def changed(folder: Path, path: Path, task: str, **scores: Any) -> Path:
    """Records like those of `folder`, in which every sample of a task has other scores."""
    import shutil

    shutil.copytree(folder, path)
    samples = [dataclasses.replace(s, scores=scores) for s in read_samples(path, task)]
    write_samples(path, task, samples)
    return path


def test_the_exit_code_is_the_verdict(ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base that knew no deed at all: to have kept the tales and learnt deeds is to pass."""
    poor = changed(ground / "base-r", tmp_path / "poor", "deeds", acc=0.0)
    rich = changed(ground / "base-r", tmp_path / "rich", "deeds", acc=1.0)
    words = ["eval", str(ground / "base"), "--suite", str(ground / "own.yaml"), "--budget", "0.01", "--overwrite"]
    capsys.readouterr()
    assert run([*words, "--against", str(poor), *out(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "verdict: pass" in said
    assert "against " in said
    assert "-> " in said
    assert "of 0 right before, 0 are wrong now" in said
    assert run([*words, "--against", str(rich), "--json", *out(tmp_path / "o")]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["verdict"]["passed"] is False
    assert "more than noise" in value["verdict"]["reasons"][0]
    assert value["evaluation"]["suites"]["tasks"]["tales"]["side"] == "general"


def test_a_model_to_compare_with_is_measured_in_the_same_way(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Suites beside a prepared corpus of the name `general`, which joins the verdict."""
    corpus = make_corpus(tmp_path / "corpus", ground / "base")
    words = ["eval", str(ground / "other"), "--suite", f"{ground / 'own.yaml'}", "--limit", "6"]
    code = run([*words, "--data", f"general={corpus}", "--against", str(ground / "base"), *out(tmp_path / "o")])
    assert code == 0
    said = capsys.readouterr().out
    assert "general: " in said
    assert f"against {ground / 'base'}" in said
    found = compare_records(tmp_path / "o", tmp_path / "o" / "against")
    assert (found["general"].side, found["general"].unit) == ("general", "nats/token")
    assert not (tmp_path / "o-against").exists()
    assert run(["eval", str(tmp_path / "o"), "--against", str(tmp_path / "o" / "against")]) == 0
    assert "general: " in capsys.readouterr().out, "from two folders of records, without measuring"
    assert found["deeds"].num_pairs == 6


def test_what_does_not_pair_is_refused(ground: Path, tmp_path: Path) -> None:
    base = ground / "base-r"
    fewer = changed(base, tmp_path / "fewer", "words", exact_match=0.0)
    write_samples(fewer, "words", read_samples(fewer, "words")[:-1])
    with pytest.raises(
        EvaluationError, match=r"words: .*base-r has 40 samples, .*fewer has 39, and they are not the s"
    ):
        compare_records(base, fewer)
    named = changed(base, tmp_path / "named", "words", exact_match="yes")
    with pytest.raises(EvaluationError, match=r"words: the metric 'exact_match' is no mean over samples \(yes\)"):
        compare_records(base, named)
    (named / "samples" / "words.jsonl").write_text("{}\n")
    with pytest.raises(EvaluationError, match="the samples of 'words' cannot be read from .*: .*'part' is missing"):
        compare_records(base, named)
    silent = changed(base, tmp_path / "silent", "words")
    lost = [dataclasses.replace(s, error="500") for s in read_samples(silent, "words")]
    write_samples(silent, "words", lost)
    with pytest.raises(EvaluationError, match="words: not one sample was answered by both models"):
        compare_records(base, silent)
    write_samples(silent, "words", [*read_samples(base, "words")[:-3], *lost[-3:]])
    assert (
        compare_records(base, silent)["words"].num_pairs,
        compare_records(base, silent)["words"].num_unanswered,
    ) == (
        37,
        3,
    )
    data = json.loads((fewer / RECORD_NAME).read_text())
    data["suites"]["tasks"]["deeds"]["shots"] = 5
    (fewer / RECORD_NAME).write_text(json.dumps(data))
    with pytest.raises(EvaluationError, match="deeds: .* has shots 1, .* has 5; evaluate both in the same way"):
        compare_records(base, fewer)


def test_what_cannot_be_compared_is_said_before_anything_is_measured(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = (make_corpus(tmp_path / name, ground / "base", seed=seed) for seed, name in enumerate("ab"))
    measured = ["eval", str(ground / "base"), "--data", f"code={first}"]
    assert run([*measured, *out(tmp_path / "r")]) == 0
    for words, said in [
        (["--data", f"code={other}", "--against", str(tmp_path / "r")], "'code'"),
        (["--data", f"code={first}", "--limit", "2", "--against", str(tmp_path / "r")], "--limit"),
        (["--data", f"law={first}", "--against", str(tmp_path / "r")], "nothing in common"),
    ]:
        capsys.readouterr()
        assert run(["eval", str(ground / "other"), *words, *out(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "o").exists()


def test_a_budget_states_what_is_promised_of_general_losses(ground: Path, tmp_path: Path) -> None:
    corpora = {name: make_corpus(tmp_path / name, ground / "base") for name in ("general-prose", "code")}
    for name in ("base", "other"):
        evaluate(ground / name, corpora, tmp_path / f"{name}-r")
    statement = state_budget(tmp_path / "other-r", tmp_path / "base-r", 0.01)
    assert statement is not None
    (kept,) = statement.texts
    found = compare_records(tmp_path / "other-r", tmp_path / "base-r")
    assert [one.side for one in found.values()] == ["domain", "general"]
    assert kept.rise == pytest.approx(-found["general-prose"].better_by)
    verdict = judge(found, 0.01, statement)
    assert (verdict.statement, verdict.passed) == (statement, False)
    assert any("general-prose" in reason for reason in verdict.reasons)


def test_lost_and_gained_are_counted_beside_what_guessing_gives() -> None:
    """Forty questions of four choices: of ten known before, four are lost; the others are guessed."""
    before, now = np.zeros(40), np.zeros(40)
    before[:10] = now[4:12] = 1
    flips = flips_of(now, before, np.full(40, 0.25))
    assert (flips.num_right_before, flips.num_lost, flips.num_gained) == (10, 4, 2)
    assert flips.by_chance == pytest.approx(40 * 0.25 * 0.75)  # a quarter right is nothing known
    assert flips_of(np.ones(40), before, np.full(40, 0.25)).by_chance == 0  # all is known


def test_subjects_of_a_mean_over_tasks_weigh_the_same(tmp_path: Path) -> None:
    from blockexpand.evaluation.verdict import _values
    from blockexpand.records.evaluation import PartScore, Sample, TaskScore

    def sample(part: str, number: int, acc: float) -> Sample:
        return Sample(part=part, number=number, document="", prompt="", output=[], scores={"acc": acc}, cut_tokens=0)

    pairs = [(sample("a", n, 1.0), sample("a", n, 0.0)) for n in range(9)] + [
        (sample("b", 0, 0.0), sample("b", 0, 0.0))
    ]
    part = PartScore(value=0.0, num_samples=1, version="1", source="", digest="")
    score = TaskScore(
        suite="s", suite_version=1, side="general", metric="acc", value=0.5, higher_is_better=True, mean="tasks",
        low=None, high=None, chance=None, shots=0,
        num_samples=10, num_errors=0, num_cut=0, others={}, parts={"a": part},
    )  # fmt: skip
    ours, theirs, weights = _values(score, pairs)
    assert ours.sum() / weights.sum() == pytest.approx(0.5)
    assert theirs.sum() == 0
    ours, _, weights = _values(dataclasses.replace(score, mean="samples"), pairs)
    assert ours.sum() / weights.sum() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0.1"], "--budget 0.1 needs --against"),
        (["--endpoint", "http://localhost:1", "--data", "a=b"], "--endpoint is for suites"),
        (
            ["--endpoint", "http://localhost:1", "--suite", "gsm8k", "--data", "a=b"],
            "--data need the model",
        ),
        (
            ["--suite", "general", "--key-variable", "K"],
            "a key (--key-variable K) is for a server; expected --endpoint",
        ),
        (
            ["--suite", "gsm8k", "--endpoint", "http://localhost:1", "--key-variable", "NO_SUCH_KEY"],
            "the environment variable NO_SUCH_KEY is not set",
        ),
        (["--suite", "genral"], "no suite or task is called 'genral'; did you mean 'general'"),
        (["--suite", "general", "--limit", "0"], "limit: expected a whole number above 0, got 0"),
        (["--data", "a=b", "--shots", "3"], "--shots 3"),
        (["--suite", "code", "--against", "BASE", "--budget", "0.1"], "nothing general"),
        (["--data", "general=b", "--against", "BASE", "--budget", "0.1"], "nothing domain"),
    ],
)
def test_wrong_words_are_one_line(
    ground: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ground / "base") if word == "BASE" else word for word in words]
    assert run(["eval", str(ground / "base"), *words, *out(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_server_is_shown_the_key_of_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-hidden")
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "test.jsonl").write_text('{"sum": "1 + 1", "is": "2"}\n')
    (tmp_path / "mine.yaml").write_text(
        "format: blockexpand.suite\nformat_version: 1\nsuite: mine\nversion: 1\nside: domain\ndata: .\ntasks:\n"
        '  - {kind: answer, task: sums, question: "{{sum}} =", answer: is}\n'
    )
    with serving(lambda _: completion("2")) as server:
        asked = ["--suite", str(tmp_path / "mine.yaml"), "--endpoint", server.url, "--key-variable", "MY_KEY"]
        assert run(["eval", "m", *asked, *out(tmp_path / "o")]) == 0
    assert [headers["authorization"] for headers in server.headers] == ["Bearer sk-hidden"] * len(server.headers)
    assert len(server.asked) == 1
    assert not [path for path in (tmp_path / "o").rglob("*") if path.is_file() and b"sk-hidden" in path.read_bytes()]


def test_the_suite_in_the_guide_runs_as_it_stands(ground: Path, tmp_path: Path) -> None:
    """docs/evaluation.md shows a suite of one's own, and rows for it, in ten lines each at most."""
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(format: blockexpand\.suite.*?)```", guide, re.DOTALL)
    (rows,) = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    assert len(shown.splitlines()) <= 10
    (tmp_path / "clauses").mkdir()
    (tmp_path / "clauses" / "test.jsonl").write_text(rows)
    (tmp_path / "mine.yaml").write_text(shown)
    assert run(["eval", str(ground / "base"), "--suite", str(tmp_path / "mine.yaml"), *out(tmp_path / "o")]) == 0
    assert len(read_samples(tmp_path / "o", "clauses")) == len(rows.splitlines())
