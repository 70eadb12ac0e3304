"""The verbs and their options are pinned in tests/golden/options.json: the list grows on purpose or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from cyclopts import ArgumentCollection

from blockexpand.cli.main import VERBS, build_app, run

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "options.json").read_text())
COMMON = ["--debug", "--json", "--quiet"]


def arguments_of(verb: str) -> ArgumentCollection:
    app = build_app()
    for word in verb.split():
        app = app[word]
    return app.assemble_argument_collection(parse_docstring=True)


def names_of(verb: str) -> list[str]:
    """Every name that a verb takes, but the options of all verbs."""
    names = {name for argument in arguments_of(verb) for name in argument.names if name != "*"}
    assert names >= set(COMMON)
    return sorted(names - set(COMMON))


def test_the_verbs_are_these() -> None:
    assert list(GOLDEN) == list(VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_options_of_each_verb_are_these(verb: str) -> None:
    assert names_of(verb) == GOLDEN[verb]


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_says_what_every_option_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for argument in arguments_of(verb):
        if "*" not in argument.names:
            assert argument.parameter.help, f"{verb} {argument.names} has no help"
            assert argument.names[0] in shown


def whole_numbers(verb: str) -> list[str]:
    return [
        argument.name
        for argument in arguments_of(verb)
        if int in (kinds := {argument.hint, *get_args(argument.hint)}) and float not in kinds
    ]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if whole_numbers(verb)])
def test_a_fraction_is_no_whole_number(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--blocks 2.5` was taken for 2; no option of any verb is rounded."""
    for option in whole_numbers(verb):
        assert run([*verb.split(), option, "2.5"]) == 2
        assert f"{option} is 2.5" in capsys.readouterr().err
