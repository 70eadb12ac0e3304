"""Which answers are right, by the rules of each set."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blockexpand.agents import SandboxTools, theorems
from blockexpand.agents.correctness import is_right
from blockexpand.records.agents import Scoring, Task
from players import PlainTools


def right(scoring: Scoring, reference: str, answer: str, **settings: Any) -> bool:
    task = Task(set="s", id="1", prompt="Q", scoring=scoring, reference=reference, **settings)
    return is_right(task, answer, SandboxTools() if scoring == "theorem" else PlainTools())


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("100", "105", True),
        ("100", "105.1", False),
        ("-100", "-104", True),
        ("0", "0.001", False),
        ("1,000", "$1,040", True),
        ("1962", "He was born in 1962.", True),
        ("yes", "YES, both", True),
        ("Pedro Rodr\u00edguez", "it is pedro rodr\u00edguez", True),
        ("Robert Childers DSC", "Robert Childers", False),
        ("\\frac{1}{2}", "x = \\frac{1}{2}", True),
        ("nan", "3", False),
    ],
)
def test_text_is_within_five_percent_or_contained(reference: str, answer: str, expected: bool) -> None:
    assert right("text", reference, answer) is expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("100", "100.0", True),
        ("1234", "1,234", True),
        ("dog cat", ' "Dog  cat". ', True),
        ("dog cat", "a dog cat", False),
    ],
)
def test_exact_is_the_same_number_or_words(reference: str, answer: str, expected: bool) -> None:
    assert right("exact", reference, answer) is expected


OPTIONS = {"a": "20", "b": "200", "c": "A and B", "d": "Nitrogen"}


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("b", "b"),
        ("(b)", "b"),
        ("B ) 200", "b"),
        ("The answer is b", "b"),
        ("The choice: (b).", "b"),
        ("200", "b"),
        ("it is 200", "b"),
        ("nitrogen.", "d"),
        ("A and B", "c"),
        ("because it is a big deal", ""),
        ("a) or b)", ""),
        ("200 and nitrogen", ""),
        ("", ""),
    ],
)
def test_a_choice_is_made_by_letter_or_text_and_is_one(answer: str, chosen: str) -> None:
    made = [letter for letter in OPTIONS if right("choice", letter, answer, options=OPTIONS)]
    assert made == ([chosen] if chosen else [])


def test_options_with_the_same_text_cannot_be_told_apart_by_it() -> None:
    options = {"a": "0.5 W", "b": "0.5 W", "c": "1 W"}
    assert not right("choice", "a", "0.5 W", options=options)
    assert right("choice", "c", "1 W", options=options)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("42", 42),
        ("007", 7),
        ("4.63e8", 4.63e8),
        ("x = 5.65 m", 5.65),
        ("$1,152", 1152),
        ("30\u00b0", 30),
        ("4.63 x 10^8", 4.63e8),
        ("1.28 \u00d7 10^-6", 1.28e-6),
        ("1.28 \\times 10^{-6}", 1.28e-6),
        ("\\frac{3}{4}", 0.75),
        ("sqrt(16)", 4.0),
        ("2^10", 1024),
        ("(4, 16, 2^16)", [4, 16, 65536]),
        ("S = [0.5, -1]", [0.5, -1]),
        ("2 pi", None),
        ("3 km/h", 3),
        ("True", True),
        ("It is false.", False),
        ("(a)", "a"),
        ("b) the second one", "b"),
        ("", None),
        ("yes and no", None),
        ("9**9**9**9", None),
        ("(-8)**0.5", None),
        ("1/0", None),
        ("__import__('os').system('ls')", None),
        ("open('/etc/passwd')", None),
        ("(" * 5000, None),
    ],
)
def test_what_a_theoremqa_answer_says(answer: str, value: Any) -> None:
    found = theorems.read(answer, SandboxTools())
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    assert type(found) is type(value) or isinstance(value, int | float)
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("answer_type", "reference", "answer", "expected"),
    [
        ("float", 1.12, "1.16", True),
        ("float", 1.12, "1.17", False),
        ("float", -0.166, "-0.17", True),
        ("float", 2.0, "True", False),
        ("integer", 25, "26", False),
        ("integer", 25, "nothing", False),
        ("list of integer", [0, 5], "[5, 0]", True),
        ("list of integer", [0, 5], "[0, 5, 5]", False),
        ("list of integer", [0, 5], "[0, 'a']", False),
        ("list of float", [0.5], "[0.51]", True),
        ("bool", False, "no", True),
        ("bool", False, "True", False),
        ("option", "a", "(a)", True),
        ("option", "(a)", "a) yes", True),
    ],
)
def test_theoremqa_by_its_kinds_of_answer(answer_type: str, reference: Any, answer: str, expected: bool) -> None:
    assert right("theorem", json.dumps(reference), answer, answer_type=answer_type) is expected


def test_code_is_right_when_its_tests_pass() -> None:
    assert right("code", "assert f(2) == 4", "```python\ndef f(x):\n    return 2 * x\n```")
    assert not right("code", "assert f(2) == 4", "def f(x): return x")
    assert not right("code", "assert f(2) == 4", "this is no code")
