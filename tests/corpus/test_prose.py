"""Prose: English stays, code, tables and lists of parameters go."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.corpus.prose import docstrings, prose_documents, prose_of

DOCSTRING = """
    Compute the mean of a sequence of numbers, ignoring those that are missing.

    The result has the type of the input. See :func:`median <stats.median>` for a value that is
    not moved by *outliers*, and ``mode`` for the most common one.

    Args:
        values (list[float]): The numbers of which the mean is taken, in any order.
        weights: How much each of the numbers counts in the mean that is returned.
        n: Size.

    Example:

        >>> mean([1, 2, 3])
        2.0

    ======  =====
    name    value
    ======  =====

    .. code-block:: python

        x = mean(values)

    - It raises an error when there are no numbers in the sequence at all.
    """


def test_english_stays_and_the_rest_goes() -> None:
    assert prose_of(DOCSTRING).split("\n") == [
        "Compute the mean of a sequence of numbers, ignoring those that are missing.",
        "The result has the type of the input. See median for a value that is not moved by outliers, and mode "
        "for the most common one.",
        "The numbers of which the mean is taken, in any order.",
        "How much each of the numbers counts in the mean that is returned.",
        "It raises an error when there are no numbers in the sequence at all.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "for i in range(10): print(i) and then x = y + z * 2 until done.",
        "| a | b | c | d | e | f | g | h |",
        "See https://example.org for the whole of the documentation of this thing.",
        "lower case fragments of a sentence that starts in the middle of it.",
        "A label",
        "```\nThis fenced text would be English but it stands in a block of code.\n```",
    ],
)
def test_what_is_not_prose_is_empty(text: str) -> None:
    assert prose_of(text) == ""


def test_docstrings_of_a_source() -> None:
    source = 'x = 1\n"""Module."""\n\ndef f():\n    r\'\'\'Of f.\'\'\'\n    y = """not one"""\n'
    assert list(docstrings(source)) == ["Module.", "Of f."]


def test_packages_are_read_but_not_their_tests(tmp_path: Path) -> None:
    sentence = "This sentence is long enough to be taken for prose by the rules."
    for name in ("pack/mod.py", "pack/tests/test_mod.py", "pack/_vendor/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""{sentence}"""\n')
    (tmp_path / "pack-1.dist-info").mkdir()
    (tmp_path / "pack-1.dist-info" / "METADATA").write_text(f"Name: pack\nSummary: No.\n\n{sentence}\n")
    (tmp_path / "pack" / "README.md").write_text(f"# Title\n\n{sentence}\n\n```\ncode here\n```\n")
    found = list(prose_documents(tmp_path))
    assert [d.text for d in found] == [sentence] * 3
    assert sorted(d.name for d in found) == ["pack-1.dist-info/METADATA#0", "pack/README.md#0", "pack/mod.py#0"]
