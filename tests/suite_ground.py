"""A suite of our own and rows for it, an address that answers by script, and rows in the shapes of known benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from blockexpand.evaluation.endpoint import Answer, Request, cut_at
from blockexpand.evaluation.harness import Options
from blockexpand.evaluation.measurement import Subject, evaluate, served_subject, subject_of
from blockexpand.evaluation.suites import load_suites
from blockexpand.records.evaluation import EvaluationRecord, TaskScore
from lm_helpers import sentences

OWN = """\
format: blockexpand.suite
format_version: 1
suite: own
version: 3
side: domain
data: rows
tasks:
  - {kind: choice, task: deeds, question: "{{text}} it", choices: [sees, likes, finds], answer: deed, shots: 1}
  - {kind: answer, task: words, question: "{{text}} the", answer: word, max_new_tokens: 4}
  - {kind: text, task: tales, side: general}
"""

HUMANEVAL = [
    {
        "task_id": "ours/0",
        "prompt": 'def double(n):\n    """Twice n."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * n\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
    },
    {
        "task_id": "ours/1",
        "prompt": 'import math\n\n\ndef root(n):\n    """The whole square root of n."""\n',
        "entry_point": "root",
        "canonical_solution": "    return math.isqrt(n)\n",
        "test": "def check(candidate):\n    assert candidate(16) == 4\n    assert candidate(17) == 4\n",
    },
]
MBPP = [
    {
        "task_id": n,
        "prompt": f"Write a function add{n} that adds {n} to a number.",
        "code": f"def add{n}(x):\n    return x + {n}",
        "test_imports": [],
        "test_list": [f"assert add{n}(1) == {n + 1}", f"assert add{n}(0) == {n}"],
    }
    for n in range(5)
]
GSM8K = [
    {
        "question": f"Ann has {n} pears and buys {n + 2:,} more. How many has she?",
        "answer": f"She has {n} + {n + 2:,} = {2 * n + 2:,}.\n#### {2 * n + 2:,}",
    }
    for n in (3, 7, 1200, 5, 9, 11)
]
LABELLED = [
    {"text": "we may end this at any time", "labels": [1]},
    {"text": "hello", "labels": []},
    {"text": "we owe you nothing, in the courts of our town", "labels": [0, 6]},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_suite(folder: Path, count: int = 8) -> Path:
    """The suite's file, its rows beside it."""
    rows = []
    for n, text in enumerate(sentences(count + 4, 3)):
        words = text.split(".")[0].split()
        rows.append({"text": " ".join(words[1:3]), "deed": ["sees", "likes", "finds"][n % 3], "word": words[-1]})
    for task in ("deeds", "words"):
        write_rows(folder / "rows" / task / "test.jsonl", rows[:count])
    write_rows(folder / "rows" / "deeds" / "train.jsonl", rows[count:])
    write_rows(folder / "rows" / "tales" / "test.jsonl", [{"text": one * 2} for one in sentences(count, 4)])
    (folder / "own.yaml").write_text(OWN)
    return folder / "own.yaml"


class Scripted:
    """Stands in for an endpoint: a function from prompt to text, or to an exception's text as the error."""

    url, model = "http://script", "m"

    def __init__(self, reply: Callable[[str], str | Exception]) -> None:
        self._reply = reply
        self.prompts: list[str] = []

    def ask(self, request: Request) -> Answer:
        prompt = str(request.messages[0]["content"])
        self.prompts.append(prompt)
        said = self._reply(prompt)
        return (
            Answer(text="", error=str(said)) if isinstance(said, Exception) else Answer(text=cut_at(said, request.stop))
        )


def measure(model: Path | str | Subject, suites: Sequence[str], out: Path, **more: Any) -> EvaluationRecord:
    """Suites on a model; options by their names."""
    more |= {"data_dir": Path(more.pop("data"))} if "data" in more else {}
    start = {name: more.pop(name) for name in ("resume", "overwrite") if name in more}
    subject = model if isinstance(model, Subject) else subject_of(model, dtype="float32")
    return evaluate(subject, {}, out, suites=load_suites(suites), options=Options(**more), **start)


def scripted(script: Scripted, suite: Path | str, out: Path, **more: Any) -> EvaluationRecord:
    """A suite on an address that answers by script."""
    return measure(served_subject(cast(Any, script)), [str(suite)], out, **more)


def figures(record: EvaluationRecord) -> dict[str, TaskScore]:
    """What each task came to."""
    assert record.suites is not None
    return record.suites.tasks
