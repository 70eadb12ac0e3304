"""Programs that models write: run in the sandbox against the data's tests, counted as pass@k."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import EvaluationError
from blockexpand.evaluation.scorers import code
from blockexpand.records.evaluation import read_samples
from lm_helpers import make_lm
from suite_ground import GSM8K, HUMANEVAL, MBPP, Scripted, figures, measure, scripted, write_rows

pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "data/humaneval/test.jsonl", HUMANEVAL)
    write_rows(tmp_path / "data/mbpp/test.jsonl", MBPP[3:])
    write_rows(tmp_path / "data/mbpp/prompt.jsonl", MBPP[:3])
    write_rows(tmp_path / "data/gsm8k_pot/test.jsonl", GSM8K)
    return tmp_path / "data"


def asked(task: str, data: Path, out: Path, answer: Callable[[str], str]) -> float | None:
    return figures(scripted(Scripted(answer), task, out, data=str(data)))[task].value


def humaneval(prompt: str) -> dict[str, Any]:
    return next(row for row in HUMANEVAL if row["prompt"] == prompt)


def pot(prompt: str, wrong: int = 0) -> str:
    question = prompt.rpartition("Question: ")[2].removesuffix("\nProgram:\n")
    answer = next(row["answer"] for row in GSM8K if row["question"] == question)
    return f"def solution():\n    return {answer.rpartition('#### ')[2].replace(',', '')} + {wrong}"


def mbpp(prompt: str) -> str:
    said = prompt.rpartition("Task: ")[2].split("\nTests:")[0]
    return next(row["code"] for row in MBPP if row["prompt"] == said)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("humaneval", lambda p: humaneval(p)["canonical_solution"]),
        ("humaneval", lambda p: f"Sure:\n```python\n{p}{humaneval(p)['canonical_solution']}```\nThat is it."),
        ("humaneval", lambda p: f"```python\n{p.partition('import math')[2] or p}{humaneval(p)['canonical_solution']}"),
        ("mbpp", mbpp),
        ("mbpp", lambda p: f"```\n{mbpp(p)}\n```"),
        ("gsm8k_pot", pot),
    ],
)
def test_reference_solutions_all_pass(task: str, answer: Callable[[str], str], data: Path, tmp_path: Path) -> None:
    assert asked(task, data, tmp_path / "out", answer) == 1.0


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("humaneval", lambda _: "    return 6\n"),
        ("humaneval", lambda _: "    import os; os._exit(0)\n"),
        ("humaneval", lambda _: ""),
        ("mbpp", lambda p: mbpp(p).replace("return x +", "return x -")),
        ("gsm8k_pot", lambda p: pot(p, wrong=1)),
        ("gsm8k_pot", lambda _: "solution = None"),
    ],
)
def test_wrong_solutions_all_fail(task: str, answer: Callable[[str], str], data: Path, tmp_path: Path) -> None:
    assert asked(task, data, tmp_path / "out", answer) == 0.0


def test_examples_of_mbpp_are_shown_in_the_data_s_order(data: Path, tmp_path: Path) -> None:
    script = Scripted(mbpp)
    scripted(script, "mbpp", tmp_path / "out", data=str(data))
    assert len(script.prompts) == 2
    for prompt in script.prompts:
        assert [prompt.find(row["prompt"]) >= 0 for row in MBPP].count(True) == 4
        assert prompt.count("[END]") == 3
        assert prompt.startswith(f"Task: {MBPP[0]['prompt']}\nTests:\n{MBPP[0]['test_list'][0]}\n")
        assert prompt.endswith("\nProgram:\n")


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    rights = [True, False, False, True, False]
    for k in range(1, 6):
        draws = list(itertools.combinations(rights, k))
        assert code.pass_at_k(5, 2, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert set(code.scores(rights * 2)) == {"pass@1", "pass@10"}
    assert code.scores([True]) == {"pass@1": 1.0}


def test_several_outputs_are_drawn_and_all_judged(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten outputs a question; every third is held to be right."""
    judged = itertools.count()
    monkeypatch.setattr(code, "_passes", lambda *_: next(judged) % 3 == 0)
    model = make_lm(tmp_path / "base")
    one = figures(measure(model, ["humaneval"], tmp_path / "out", data=str(data), samples=10))["humaneval"]
    samples = read_samples(tmp_path / "out", "humaneval")
    assert [len(s.output) for s in samples] == [10, 10]
    assert len(set(samples[0].output)) > 1  # drawn, not greedy
    assert next(judged) == 20
    assert one.value == pytest.approx(7 / 20)
    assert one.others["pass@10"] == 1.0


def test_a_reference_without_a_number_is_refused(data: Path, tmp_path: Path) -> None:
    write_rows(data / "gsm8k_pot/test.jsonl", [{"question": "How many?", "answer": "Nobody knows.\n####"}])
    with pytest.raises(
        EvaluationError, match=r"no number after ####: 'Nobody knows.\\n####'; expected e\.g\. '#### 72'"
    ):
        asked("gsm8k_pot", data, tmp_path / "out", lambda _: "def solution():\n    return 1")
    assert [code.reference_number(f"so\n#### {text}") for text in ("72", "-1,200", "$3.50", "4.")] == [
        72,
        -1200,
        3.5,
        4,
    ]
