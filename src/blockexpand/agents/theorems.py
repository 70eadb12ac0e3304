"""What a TheoremQA answer says: text to a number, a list, a truth value or an option; and whether it is right.

In: the words of a solution. Out: a value, or None when there is none to read. Arithmetic is worked out by walking the
parsed expression, never by running it; powers and lengths have limits, since the text comes from a model.

Numbers within 4 % of the reference count (TheoremQA's evaluation, as MINT takes it over), whole ones must round to it,
lists are compared element by element after sorting.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

_TOLERANCE = 0.04  # TheoremQA, predict_accuracy.py
_LONGEST_ANSWER = 2_000
_LARGEST_EXPONENT = 1_000
_LARGEST_NUMBER = 1e300

Value = bool | float | int | str | list

_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "ln": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "abs": abs,
}
_CONSTANTS: dict[str, Value] = {"pi": math.pi, "e": math.e, "True": True, "False": False}
_NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"


def is_right(answer: str, answer_type: str, reference: Any) -> bool:
    """Whether an answer is right; `reference` is the data's value."""
    value = read(answer)
    if answer_type == "bool":
        return isinstance(value, bool) and value == bool(reference)
    if answer_type == "option":
        return isinstance(value, str) and value == str(reference).strip("() ").lower()
    if answer_type.startswith("list"):
        return isinstance(value, list) and _same_list(value, reference)
    return _is_number(value) and _same_number(value, reference)


def read(answer: str) -> Value | None:
    """The value that an answer states."""
    text = _core(answer[:_LONGEST_ANSWER])
    if found := _word(text):
        return found[0]
    number = re.fullmatch(
        rf"(?:[^\d\s.+\-\[({{]{{1,3}}\s?)?({_NUMBER})(?:\s?(?!pi\b)[a-zA-Z%\u20ac\u03bc][^\d()]*)?", text
    )
    if number:
        return _as_number(number.group(1).replace(",", ""))
    return _worked_out(_as_python(text))


def _core(answer: str) -> str:
    """What stands behind the last sign of equality, without signs that only decorate."""
    text = re.split("[=\u2248]", answer)[-1]
    text = re.sub("[`$\u00b0]|\\\\[(),\\[\\]]|approximately|about", "", text).strip()
    text = text.split(" or ")[0].strip()
    return text.rstrip(".").strip()


def _word(text: str) -> tuple[Value] | None:
    """A truth value or an option's letter, in a tuple since False is an answer, too."""
    option = re.fullmatch(r"\(?\s*([a-d])\s*\)?(?:[.:\s].*)?", text.lower(), re.DOTALL)
    if option and (len(text) == 1 or ")" in text[:6]):
        return (option.group(1),)
    truths = set(re.findall(r"\b(true|false|yes|no)\b", text.lower()))
    if len(truths) == 1 and not re.search(r"\d", text):
        return (truths <= {"true", "yes"},)
    return None


def _as_python(text: str) -> str:
    text = text.replace("\u00d7", "*").replace("\u2212", "-").replace("\\times", "*").replace("\\cdot", "*")
    text = re.sub(r"(?<=[\d)])\s*[x]\s*(?=[\d(])", "*", text)
    text = re.sub(r"\\frac\{([^{}]+)\}\{([^{}]+)\}", r"((\1)/(\2))", text)
    text = text.replace("\\pi", "pi").replace("\u03c0", "pi").replace("\\sqrt", "sqrt")
    text = re.sub(r"(?:math|np|numpy)\.", "", text)
    return text.replace("{", "(").replace("}", ")").replace("^", "**").strip()


def _worked_out(text: str) -> Value | None:
    try:
        return _checked(_value(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    """The value of an expression; ValueError for all that is no arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | bool):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_checked(_value(item)) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _number(_value(node.operand))
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _number(_value(node.left)), _number(_value(node.right))
        if isinstance(node.op, ast.Pow) and (abs(right) > _LARGEST_EXPONENT or abs(left) > _LARGEST_NUMBER):
            raise ValueError(f"{right} is too large an exponent")
        return _checked(_OPERATIONS[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        return _function(node.func.id)(_number(_value(node.args[0])))
    raise ValueError(f"{ast.dump(node)[:40]} is no arithmetic")


def _function(name: str) -> Callable[[float], float]:
    if name not in _FUNCTIONS:
        raise ValueError(f"{name} is no function that is known here")
    return _FUNCTIONS[name]


def _number(value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"{value!r} is no number")
    return value


def _checked(value: Any) -> Any:
    """The value, if it is one that can be compared."""
    if isinstance(value, complex) or (_is_number(value) and not abs(value) <= _LARGEST_NUMBER):
        raise ValueError("out of bounds")
    return value


def _as_number(text: str) -> Value | None:
    return _worked_out(text.lstrip("+").lstrip("0") or "0") if re.fullmatch(r"\+?0*\d+", text) else _worked_out(text)


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
