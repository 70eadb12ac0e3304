"""Tasks of multi-turn episodes: a question, and how an answer to it is checked.

In: JSON lines in MINT's format (`id`, `prompt`, `reference`; TheoremQA adds `answer_type`), which the user brings, or
tasks that this project wrote (a record with `scoring`). How a file of MINT is scored follows from the set it is of:
from `name=path`, or the file's or its folder's name. Refused: an unknown set, wrong columns, no task, one id twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockexpand.errors import AgentError, RecordError, nearest
from blockexpand.records import check, from_plain, parse_json, read_text
from blockexpand.records.agents import Scoring, Task

SCORINGS: dict[str, Scoring] = {
    "gsm8k": "text",
    "math": "text",
    "hotpotqa": "text",
    "mmlu": "choice",
    "theoremqa": "theorem",
    "humaneval": "code",
    "mbpp": "code",
}
"""By MINT's names of its sets (xingyaoww/mint-bench, mint/tasks)."""


def load_tasks(sources: Sequence[str], limit: int | None = None) -> list[Task]:
    """The tasks of some files.

    Args:
        sources: Paths, or `name=path` where the path does not say which set it is.
        limit: The first so many of each file.

    Raises:
        AgentError: a file is missing, of no known set, empty, or a line of it is no task.
    """
    tasks: list[Task] = []
    for source in sources:
        name, equals, path = source.partition("=")
        named = name if equals else ""
        tasks += _load(Path(path if equals else source), named)[:limit]
    seen: set[tuple[str, str]] = set()
    for task in tasks:
        if (task.set, task.id) in seen:
            raise AgentError(f"the task {task.id!r} of {task.set} is there twice; expected each once; give a file once")
        seen.add((task.set, task.id))
    return tasks


def _load(path: Path, named: str) -> list[Task]:
    try:
        lines = read_text(path).splitlines()
    except RecordError as error:
        raise AgentError(f"no tasks: {error}; expected JSON lines of id, prompt and reference") from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise AgentError(f"{path} holds no task; expected JSON lines of id, prompt and reference")
    name = "" if _is_ours(rows[0][1]) else _set_of(path, named)
    return [_task(line, name, f"{path}, line {number}") for number, line in rows]


def _is_ours(line: str) -> bool:
    """Whether a file is one that this project wrote; a broken line is refused later, with its number."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "scoring" in row


def _set_of(path: Path, named: str) -> str:
    found = named or next((n for n in (path.stem, path.parent.name) if n in SCORINGS), "")
    if not found:
        raise AgentError(
            f"cannot tell which set {path} is of: neither the file's nor its folder's name says it; expected one of "
            f"{', '.join(sorted(SCORINGS))}; write e.g. --tasks gsm8k={path}"
        )
    if found not in SCORINGS:
        raise AgentError(f"unknown set {found!r} for {path}; {nearest(found, SCORINGS)}")
    return found


def _task(line: str, name: str, where: str) -> Task:
    try:
        row = parse_json(line, where)
        if not name:
            return from_plain(Task, row, where)
        return _of_mint(row, name, where)
    except RecordError as error:
        raise AgentError(
            f"{error}; expected a task of {name or 'this project'}; mend the line or leave it out"
        ) from None


def _of_mint(row: Any, name: str, where: str) -> Task:
    needed = ("id", "prompt", "reference", *(("answer_type",) if SCORINGS[name] == "theorem" else ()))
    missing = [key for key in needed if not isinstance(row, Mapping) or key not in row]
    if missing:
        found = ", ".join(map(repr, row)) if isinstance(row, Mapping) else repr(row)[:80]
        raise RecordError(f"{where}: no {' and no '.join(map(repr, missing))}; found {found}")
    scoring = SCORINGS[name]
    prompt, reference = row["prompt"], row["reference"]
    check(isinstance(prompt, str), f"{where}: prompt", prompt, "text")
    plain = reference if isinstance(reference, str) else json.dumps(reference)
    return Task(
        set=name,
        id=str(row["id"]),
        prompt=_asked(name, prompt),
        scoring=scoring,
        reference=_reference(scoring, reference, plain),
        answer_type=str(row["answer_type"]).lower() if scoring == "theorem" else "",
        options=options_of(prompt) if scoring == "choice" else {},
    )


def _reference(scoring: Scoring, reference: Any, plain: str) -> str:
    if scoring == "theorem":
        return json.dumps(reference)
    return plain.strip().lower() if scoring == "choice" else plain


def _asked(name: str, prompt: str) -> str:
    """The question as it is put: MINT's data leave some of it to its program."""
    if name == "humaneval":
        return f"Finish this function. Give all of it, its imports too.\n\n{prompt}"
    if name == "mbpp":
        return prompt.replace('"""', "").strip()
    if name == "theoremqa":
        return (
            f"{prompt.strip()}\nThe answer is a number, a list of numbers, True or False, or the letter of an option."
        )
    return prompt.strip()


_OPTION = re.compile(r"(?:^|\s,\s)([A-Z])\s?\)\s?(.*?)(?=\s,\s[A-Z]\s?\)|$)", re.DOTALL)


def options_of(prompt: str) -> dict[str, str]:
    """The options at the end of a question of MINT's MMLU: `Options: A ) six , B ) seven`."""
    _, _, listed = prompt.rpartition("Options:")
    return {letter.lower(): text.strip() for letter, text in _OPTION.findall(listed.strip())}
