"""Tasks: MINT's format read strictly, and the puzzles we make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blockexpand.agents.correctness import is_right
from blockexpand.agents.puzzles import make_puzzles
from blockexpand.agents.tasks import load_tasks
from blockexpand.errors import AgentError
from blockexpand.records.agents import sets_of, tasks_digest
from blockexpand.records.lines import write_lines
from players import PlainTools

CHOICE = "What is 2 + 3?\nOptions: A ) 4 , B ) (5, or five) , C ) [6,7] , D ) none, really"


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_each_set_of_mint_is_read_as_its_program_reads_it(tmp_path: Path) -> None:
    rows = {
        "gsm8k": {"id": 3, "prompt": " How many? ", "reference": "12"},
        "mmlu": {"id": 0, "prompt": CHOICE, "reference": "B"},
        "theoremqa": {"id": 1, "prompt": "Which?", "reference": [1, 2], "answer_type": "list of integer"},
        "humaneval": {"id": 0, "prompt": "def f():\n", "reference": "assert f() == 1", "entry_point": "f"},
        "mbpp": {"id": 5, "prompt": '"""\nWrite g.\n"""\n', "reference": "assert g() == 2"},
    }
    paths = [str(write(tmp_path / f"{name}.jsonl", row)) for name, row in rows.items()]
    tasks = {task.set: task for task in load_tasks(paths)}
    assert sets_of(tasks.values()) == list(rows)
    assert [tasks[name].scoring for name in rows] == ["text", "choice", "theorem", "code", "code"]
    assert (tasks["gsm8k"].prompt, tasks["gsm8k"].id) == ("How many?", "3")
    assert tasks["mmlu"].reference == "b"
    assert tasks["mmlu"].options == {"a": "4", "b": "(5, or five)", "c": "[6,7]", "d": "none, really"}
    assert tasks["theoremqa"].reference == "[1, 2]"
    assert tasks["humaneval"].prompt.endswith("\n\ndef f():\n")
    assert tasks["mbpp"].prompt == "Write g."


def test_the_set_is_named_by_the_user_the_file_or_its_folder(tmp_path: Path) -> None:
    row = {"id": 0, "prompt": "Q", "reference": "1"}
    mine = write(tmp_path / "mine.jsonl", row)
    assert load_tasks([f"math={mine}"])[0].set == "math"
    assert load_tasks([str(write(tmp_path / "hotpotqa" / "test_prompts.json", row))])[0].set == "hotpotqa"
    assert len(load_tasks([str(write(tmp_path / "gsm8k.jsonl", row, row | {"id": 1}))], limit=1)) == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("none.jsonl", "no such file: .*none.jsonl"),
        ("empty.jsonl", "empty.jsonl holds no task"),
        ("mine.jsonl", "cannot tell which set .*mine.jsonl is of: .* write e.g. --tasks gsm8k=.*mine.jsonl"),
        ("gsm9k=mine.jsonl", "unknown set 'gsm9k' .*did you mean 'gsm8k'"),
        ("theoremqa=mine.jsonl", "mine.jsonl, line 1: no 'answer_type'; found 'id', 'prompt', 'reference'"),
        ("mmlu=mine.jsonl", "reference: expected one of two or more options .none was found., got '1'"),
        ("math=list.jsonl", r"list.jsonl, line 1: no 'id' and no 'prompt' and no 'reference'; found \[1\]"),
        ("math=broken.jsonl", "broken.jsonl, line 2 is not JSON"),
        ("math=number.jsonl", "number.jsonl, line 1: prompt: expected text, got 7"),
        ("math=twice.jsonl", "the task '1' of math is there twice"),
        ("theoremqa=kind.jsonl", "answer_type: expected one of bool, .*, got 'matrix'"),
        ("ours.jsonl", "ours.jsonl, line 1: unknown key 'promt'; did you mean 'prompt'"),
    ],
)
def test_what_is_no_task_is_refused(source: str, said: str, tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "Q", "reference": "1"}
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "mine.jsonl", row)
    write(tmp_path / "list.jsonl", [1])
    write(tmp_path / "broken.jsonl", row, "{")
    write(tmp_path / "number.jsonl", row | {"prompt": 7})
    write(tmp_path / "twice.jsonl", row, row)
    write(tmp_path / "kind.jsonl", row | {"answer_type": "matrix"})
    write(tmp_path / "ours.jsonl", {"set": "a", "id": "1", "promt": "x", "scoring": "exact", "reference": "1"})
    name, equals, file = source.rpartition("=")
    with pytest.raises(AgentError, match=said):
        load_tasks([f"{name}{equals}{tmp_path / file}"])


def test_tasks_of_our_own_are_read_back(tmp_path: Path) -> None:
    puzzles = make_puzzles(8)
    write_lines(tmp_path / "mine.jsonl", puzzles)
    assert load_tasks([str(tmp_path / "mine.jsonl")]) == puzzles


def test_the_same_seed_makes_the_same_puzzles_and_no_question_twice() -> None:
    puzzles = make_puzzles(400, seed=3)
    assert puzzles == make_puzzles(400, seed=3)
    assert len({p.prompt for p in puzzles} - {p.prompt for p in make_puzzles(400, seed=4)}) > 390
    assert {p.id.split("-")[0] for p in puzzles} == {"arithmetic", "string", "table", "search"}
    # Frozen: other machines and other versions of Python must ask the same questions.
    assert tasks_digest(make_puzzles(40)) == "sha256:8079cb3038f91ff9e49b9c2f2baf9939c37d174d7bbdb9288ab4e8ae1b3bf958"


def test_the_program_of_a_puzzle_prints_its_answer() -> None:
    """Every kind: the answer was worked out here, the program works it out from the question's numbers."""
    puzzles = make_puzzles(120, seed=7)
    parts = [f"print('@', end='')\n{p.program}\n" for p in puzzles]
    done = subprocess.run([sys.executable, "-I", "-c", "".join(parts)], capture_output=True, text=True, check=True)
    printed = done.stdout.split("@")[1:]
    assert [text.rstrip("\n") for text in printed] == [p.reference for p in puzzles]
    assert all(is_right(p, p.reference, PlainTools()) for p in puzzles)
