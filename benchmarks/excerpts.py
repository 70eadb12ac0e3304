"""The data of the suites from a folder of excerpts: the same rows, under the hub's columns.

    .venv/bin/python benchmarks/excerpts.py EXCERPTS OUT

EXCERPTS holds gsm8k/, humaneval/, mbpp/, math/, choice/, law/ and mint/ as their authors publish them (the README of
that folder says where each comes from); OUT can be given to `blockexpand eval --data-dir`. HellaSwag and MMLU by
subject are not among the excerpts, so those tasks are not made.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LABELS = [
    "Limitation of liability",
    "Unilateral termination",
    "Unilateral change",
    "Content removal",
    "Contract by using",
    "Choice of law",
    "Jurisdiction",
    "Arbitration",
]


def write(out: Path, task: str, split: str, rows: Iterable[Row]) -> None:
    folder = out / task
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def lines(path: Path) -> list[Row]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def table(path: Path) -> list[Row]:
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def arc(row: Row) -> Row:
    """An instruction with "Answer1: .. Answer2: .." becomes a question with choices."""
    question, options = row["instruction"].split("\n\n")[:2]
    texts = [text.strip() for text in re.split(r"Answer\d: ", options)[1:]]
    return {
        "question": question.removeprefix("Please choose the correct answer to the question: "),
        "choices": {"text": texts, "label": [str(n + 1) for n in range(len(texts))]},
        "answerKey": row["answer"].removeprefix("answer"),
    }


def winogrande(row: Row) -> Row:
    sentence, options = row["instruction"].split("\n\n")[:2]
    found = re.match(r"Option1: (.*) Option2: (.*) Answer format", options)
    assert found, options
    lead = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    answer = row["answer"].removeprefix("option")
    return {"sentence": sentence.removeprefix(lead), "option1": found[1], "option2": found[2], "answer": answer}


def truthfulqa(row: Row) -> Row:
    right, wrong = ([x for x in row[key].split("; ") if x] for key in ("Correct Answers", "Incorrect Answers"))
    return {
        "question": row["Question"],
        "mc2_targets": {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)},
    }


def make_data(excerpts: Path, out: Path) -> None:
    """All the tasks there are excerpts of."""
    gsm8k = lines(excerpts / "gsm8k/train.jsonl")
    for task in ("gsm8k", "gsm8k_pot"):
        write(out, task, "train", gsm8k[:500])
        write(out, task, "test", gsm8k[500:])
    write(out, "humaneval", "test", lines(excerpts / "humaneval/HumanEval.jsonl.gz"))
    mbpp = lines(excerpts / "mbpp/sanitized_a.jsonl")
    write(out, "mbpp", "prompt", [row for row in mbpp if row["task_id"] <= 10])
    write(out, "mbpp", "test", [row for row in mbpp if row["task_id"] > 10])
    mathematics = lines(excerpts / "math/math_a.jsonl")
    write(out, "hendrycks_math", "test", [{"problem": r["question"], **r["other"]} for r in mathematics])
    for split in ("train", "test"):
        rows = json.loads((excerpts / f"choice/arc-challenge_{split}.json").read_text("utf-8"))
        write(out, "arc_challenge", split, map(arc, rows))
    sentences = list(map(winogrande, json.loads((excerpts / "choice/winogrande_test.json").read_text("utf-8"))))
    write(out, "winogrande", "train", sentences[:200])
    write(out, "winogrande", "validation", sentences[200:])
    write(out, "truthfulqa_mc2", "validation", map(truthfulqa, table(excerpts / "choice/truthfulqa.csv")))
    make_law(excerpts / "law/legalbench", out)
    (out / "text").mkdir(exist_ok=True)
    (out / "text" / "test.txt").write_text((excerpts / "wikitext2/valid.txt").read_text("utf-8"), encoding="utf-8")


def make_law(folder: Path, out: Path) -> None:
    """LegalBench's labelled examples are few: where the suite shows some, the first half is shown, the rest asked."""
    for path in sorted(folder.glob("*.tsv")):
        rows = table(path)
        half = len(rows) // 2 if path.stem in ("hearsay", "unfair_tos") else 0
        write(out, f"legalbench_{path.stem}", "train", rows[:half])
        write(out, f"legalbench_{path.stem}", "test", rows[half:])
    clauses = table(folder / "unfair_tos.tsv")
    named = [
        {"text": r["text"], "labels": [LABELS.index(r["answer"])] if r["answer"] in LABELS else []} for r in clauses
    ]
    write(out, "unfair_tos", "train", named[:5])
    write(out, "unfair_tos", "test", named[5:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("excerpts", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    make_data(given.excerpts, given.out)
