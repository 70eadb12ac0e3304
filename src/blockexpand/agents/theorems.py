"""What a TheoremQA answer says: text to a number, a list, a truth value or an option; and whether it is right.

In: the words of a solution. Out: a value, or None when there is none to read. An expression is worked out in the
sandbox, since the text comes from a model, and only where it is arithmetic by its letters.

Numbers within 4 % of the reference count (TheoremQA's evaluation, as MINT takes it over), whole ones must round to it,
lists are compared element by element after sorting.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from blockexpand.agents.tools import SandboxTools

_TOLERANCE = 0.04  # TheoremQA, predict_accuracy.py
_LONGEST_ANSWER = 2_000
_LARGEST_NUMBER = 1e300
_KNOWN = {"sqrt", "exp", "log", "ln", "log2", "log10", "sin", "cos", "tan", "abs", "pi", "e", "true", "false"}
_NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"

Value = bool | float | int | str | list


def is_right(answer: str, answer_type: str, reference: Any, tools: SandboxTools) -> bool:
    """Whether an answer is right; `reference` is the data's value."""
    value = read(answer, tools)
    if answer_type == "bool":
        return isinstance(value, bool) and value == bool(reference)
    if answer_type == "option":
        return isinstance(value, str) and value == str(reference).strip("() ").lower()
    if answer_type.startswith("list"):
        return isinstance(value, list) and _same_list(value, reference)
    return _is_number(value) and _same_number(value, reference)


def read(answer: str, tools: SandboxTools) -> Value | None:
    """The value that an answer states."""
    text = _core(answer[:_LONGEST_ANSWER])
    option = re.fullmatch(r"\(?\s*([a-d])\s*\)?(?:[.:\s].*)?", text.lower(), re.DOTALL)
    if option and (len(text) == 1 or ")" in text[:6]):
        return option.group(1)
    truths = set(re.findall(r"\b(true|false|yes|no)\b", text.lower()))
    if len(truths) == 1 and not re.search(r"\d", text):
        return truths <= {"true", "yes"}
    number = re.fullmatch(
        rf"(?:[^\d\s.+\-\[({{]{{1,3}}\s?)?({_NUMBER})(?:\s?(?!pi\b)[a-zA-Z%\u20ac\u03bc][^\d()]*)?", text
    )
    if number:
        return _checked(float(number.group(1).replace(",", "")))
    return _worked_out(_as_python(text), tools)


def _core(answer: str) -> str:
    """What stands behind the last sign of equality, without signs that only decorate."""
    text = re.split("[=\u2248]", answer)[-1]
    text = re.sub("[`$\u00b0]|\\\\[(),\\[\\]]|approximately|about", "", text).strip()
    text = text.split(" or ")[0].strip()
    return text.rstrip(".").strip()


def _as_python(text: str) -> str:
    text = text.replace("\u00d7", "*").replace("\u2212", "-").replace("\\times", "*").replace("\\cdot", "*")
    text = re.sub(r"(?<=[\d)])\s*[x]\s*(?=[\d(])", "*", text)
    text = re.sub(r"\\frac\{([^{}]+)\}\{([^{}]+)\}", r"((\1)/(\2))", text)
    text = text.replace("\\pi", "pi").replace("\u03c0", "pi").replace("\\sqrt", "sqrt")
    text = re.sub(r"(?:math|np|numpy)\.", "", text)
    return text.replace("{", "(").replace("}", ")").replace("^", "**").strip()


def _worked_out(text: str, tools: SandboxTools) -> Value | None:
    """The value of an expression of numbers, signs and known functions."""
    words = set(re.findall(r"[A-Za-z]\w*", re.sub(_NUMBER, "", text)))
    if not text or "_" in text or not words <= _KNOWN or not re.fullmatch(r"[\w\s.,+*/%()\[\]-]+", text):
        return None
    said = tools.printed(f"from math import *\nln, true, false = log, True, False\nprint(repr(({text})))")
    try:
        value = ast.literal_eval(said.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(value, tuple | list):
        found = [_checked(one) for one in value]
        return None if None in found else found
    return _checked(value)


def _checked(value: Any) -> Value | None:
    """The value, if it is one that can be compared."""
    if isinstance(value, bool):
        return value
    return value if _is_number(value) and abs(value) <= _LARGEST_NUMBER else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_number(value: Any, reference: Any) -> bool:
    if isinstance(reference, float):
        return abs(value - reference) <= _TOLERANCE * abs(reference)
    return round(value) == reference


def _same_list(values: Sequence[Any], reference: Any) -> bool:
    if not isinstance(reference, list) or len(values) != len(reference) or not all(map(_is_number, values)):
        return False
    return all(_same_number(v, r) for v, r in zip(sorted(values), sorted(reference), strict=True))
