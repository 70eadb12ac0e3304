"""Whether a proposed solution is right, by the rules of the set it is for.

In: a task and the text of a solution. Out: right or wrong. The rules are MINT's (xingyaoww/mint-bench, mint/tasks),
with one difference: there, the right option's letter anywhere in an answer makes it right ("it is a cat" chooses a,
c, i, s and t); here a letter chooses an option only where it stands for one.
"""

from __future__ import annotations

import json
import math
import re

from blockexpand.agents import theorems
from blockexpand.agents.tools import SandboxTools
from blockexpand.records.agents import Task

_TOLERANCE = 0.05  # MINT, mint/tasks/reasoning.py


def is_right(task: Task, answer: str, tools: SandboxTools) -> bool:
    """Whether the answer is right; code runs in the sandbox of `tools`."""
    if task.scoring == "code":
        return tools.passes(program_of(answer), task.reference)
    if task.scoring == "theorem":
        return theorems.is_right(answer, task.answer_type, json.loads(task.reference), tools)
    if task.scoring == "choice":
        return _chooses(answer, task)
    if task.scoring == "exact":
        return _is_the_same(answer, task.reference)
    return _says(answer.strip().lower(), task.reference.strip().lower())


def program_of(answer: str) -> str:
    """The code of an answer, out of the fence that models like to put around it."""
    fenced = re.fullmatch(r"\s*```[a-zA-Z0-9]*[ \t]*\n(.*?)\n?\s*```\s*", answer, re.DOTALL)
    return fenced.group(1) if fenced else answer


def number_of(text: str) -> float | None:
    """The finite number that a text is, with thousands' commas and a dollar or percent sign; None when it is none."""
    bare = text.strip().rstrip(".").strip("$% ")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", bare):
        bare = bare.replace(",", "")
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", bare):
        return None
    number = float(bare)
    return number if math.isfinite(number) else None


def _is_close(answer: float, reference: float) -> bool:
    return abs(reference - answer) <= _TOLERANCE * abs(reference)


def _says(answer: str, reference: str) -> bool:
    """Two numbers within 5 % of each other, or else the reference somewhere in the answer."""
    theirs, ours = number_of(answer), number_of(reference)
    if theirs is not None and ours is not None:
        return _is_close(theirs, ours)
    return bool(reference) and reference in answer


def _is_the_same(answer: str, reference: str) -> bool:
    theirs, ours = number_of(answer), number_of(reference)
    if theirs is not None and ours is not None:
        return theirs == ours
    return _plain(answer) == _plain(reference)


def _plain(text: str) -> str:
    """Words and signs with single spaces, without quotation marks around the whole and a full stop behind it."""
    return " ".join(text.strip().rstrip(".").strip("'\"`").lower().split())


_STANDS_FOR = re.compile(
    r"""(?:^|[\s(\[*]) \(? ([a-z]) \s?\)            # "c)", "(c)", "C ) 18107"
      | \b(?:option|answer|choice) (?:\s+is)? [:\s]+ \(? ([a-z]) (?![\w'])
      | ^ \W{0,2} ([a-z]) [.:]? \W{0,2} $           # the letter alone
      | ^ \(? ([a-z]) [.:] \s                       # "c. because ..."
    """,
    re.VERBOSE,
)


def _chooses(answer: str, task: Task) -> bool:
    """Whether the answer names the right option by letter or by text, and no other."""
    text = answer.strip().lower()
    letters = {letter for found in _STANDS_FOR.findall(text) for letter in found if letter in task.options}
    if letters:
        return letters == {task.reference}
    options = {letter: option.lower().rstrip(".").strip() for letter, option in task.options.items()}
    right = options.pop(task.reference)
    same = [letter for letter, option in options.items() if _plain(text) == option]
    if _plain(text) == right or same:
        return not same
    wrong = [option for option in options.values() if option not in right]
    return _says(text, right) and not any(_says(text, option) for option in wrong)
