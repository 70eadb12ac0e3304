"""The suites on excerpts of their data: the scorers against the data's own answers, and each suite once.

    .venv/bin/python benchmarks/suites.py scorers EXCERPTS
    .venv/bin/python benchmarks/suites.py run EXCERPTS [--model FOLDER] [--chat] [--limit 8] [--shots 2]

EXCERPTS as for `excerpts.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockexpand.evaluation.endpoint import Answer, Request
from blockexpand.evaluation.harness import Options
from blockexpand.evaluation.measurement import evaluate, served_subject, subject_of
from blockexpand.evaluation.suites import load_suites
from blockexpand.progress import progress_in
from excerpts import lines, make_data

BASE = Path(__file__).parents[1] / "src/blockexpand/data/tiny_base"
SUITES = ("general", "math", "code", "law", "perplexity", "paper")
MISSING = {"hellaswag", "mmlu"}  # not among the excerpts


class Reference:
    """An address that answers every question as the data do."""

    url, model = "reference", "reference"

    def __init__(self, answer: Callable[[str], str]) -> None:
        """`answer` takes the whole prompt."""
        self._answer = answer

    def ask(self, request: Request) -> Answer:
        """The data's answer."""
        return Answer(text=self._answer(str(request.messages[0]["content"])))


def references(data: Path) -> dict[str, Callable[[str], str]]:
    """How to answer each task's prompts with what the data hold."""
    humaneval = {row["prompt"]: row["canonical_solution"] for row in lines(data / "humaneval/test.jsonl")}
    mbpp = {"\n".join([row["prompt"], "Tests:", *row["test_list"]]): row for row in lines(data / "mbpp/test.jsonl")}
    gsm8k = {row["question"]: row["answer"] for row in lines(data / "gsm8k/test.jsonl")}
    problems = {row["problem"]: row["solution"] for row in lines(data / "hendrycks_math/test.jsonl")}

    def program(prompt: str) -> str:
        answer = gsm8k[prompt.rpartition("Question: ")[2].removesuffix("\nProgram:\n")]
        return f"def solution():\n    return {answer.rpartition('#### ')[2].replace(',', '')}"

    return {
        "humaneval": lambda prompt: humaneval[prompt],
        "mbpp": lambda prompt: mbpp[prompt.rpartition("Task: ")[2].removesuffix("\nProgram:\n")]["code"],
        "gsm8k": lambda prompt: " " + gsm8k[prompt.rpartition("Question: ")[2].removesuffix("\nAnswer:")],
        "gsm8k_pot": program,
        "hendrycks_math": lambda prompt: boxed(problems[prompt.removeprefix("Problem: ").removesuffix("\nAnswer:")]),
    }


def boxed(solution: str) -> str:
    r"""What stands in the solution's last \boxed, by counting braces; the harness finds it by its own code."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    rest = solution[start:].partition("{")[2] if solution[start:].startswith(("\\boxed{", "\\fbox{")) else ""
    if not rest:
        return solution[start:].removeprefix("\\boxed ").split("$")[0]
    depth = 1
    for end, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:end]
    raise ValueError(f"unclosed: {rest}")


def check_scorers(data: Path, limit: int | None) -> None:
    """Every reference solution is right by its scorer."""
    for task, answer in references(data).items():
        limited = limit if limit is not None else (400 if task == "gsm8k_pot" else None)
        with tempfile.TemporaryDirectory() as out:
            start = time.monotonic()
            reference: Any = Reference(answer)
            options = Options(data_dir=data, limit=limited)
            subject = served_subject(reference)
            record = evaluate(subject, {}, Path(out) / "o", suites=load_suites([task]), options=options)
        assert record.suites is not None
        one = record.suites.tasks[task]
        print(
            f"| {task} | {one.num_samples:,} | {one.value:.2%} | {time.monotonic() - start:.0f} s |",
            flush=True,
        )


def run_suites(data: Path, given: argparse.Namespace) -> None:
    """Each suite once, without the tasks that there are no excerpts of."""
    for suite in given.suites.split(","):
        (chosen,) = load_suites([suite])
        names = [task.task for task in chosen.suite.tasks if task.task not in MISSING]
        kept = tuple(task for task in chosen.suite.tasks if task.task in names)
        chosen = dataclasses.replace(chosen, suite=dataclasses.replace(chosen.suite, tasks=kept))
        options = Options(data_dir=data, limit=given.limit, shots=given.shots, chat=given.chat)
        with tempfile.TemporaryDirectory() as out:
            start = time.monotonic()
            subject = subject_of(given.model, dtype=given.dtype)
            record = evaluate(subject, {}, Path(out) / "o", suites=[chosen], options=options)
        assert record.suites is not None
        print(f"\n{suite}, {time.monotonic() - start:.0f} s, {record.dtype}")
        for task, one in record.suites.tasks.items():
            interval = f" [{one.low:.3f}, {one.high:.3f}]" if one.low is not None else ""
            print(
                f"| {task} | {one.metric} | {one.value:.3f}{interval} | {one.num_samples} | {one.num_cut} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scorers", "run"])
    parser.add_argument("excerpts", type=Path)
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--shots", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_in("silent"):
        make_data(given.excerpts, Path(folder))
        if given.what == "scorers":
            check_scorers(Path(folder), given.limit)
        else:
            given.limit = given.limit or 8
            run_suites(Path(folder), given)


if __name__ == "__main__":
    main()
