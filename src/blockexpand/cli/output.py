"""What every verb shares: its common options, and how a result is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter

from blockexpand.errors import UsageError
from blockexpand.records import dump_json, has_format, with_format

_COMMON = Group("Common options", sort_key=99)

DONE, FAILED = 0, 1
"""Exit codes: the work is done; the work is done and the check did not hold."""


@Parameter(name="*", group=_COMMON, negative="")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every verb."""

    json: bool = False
    """Print the result as JSON on standard output, and nothing else there."""
    quiet: bool = False
    """Show no progress."""
    debug: bool = False
    """Show the traceback of an error."""


DEFAULTS = Common()
Shared = Annotated[Common, Parameter(name="*")]


def show(common: Common, value: Any, text: str | Callable[[], Any]) -> None:
    """Print the result: with --json the value as its file has it, else the text (or what `text()` gives rich)."""
    if common.json:
        sys.stdout.write(dump_json(with_format(value) if has_format(value) else value))
    elif isinstance(text, str):
        sys.stdout.write(text.rstrip("\n") + "\n")
    else:
        from rich.console import Console

        Console().print(text())


def named_folders(pairs: list[str]) -> dict[str, str]:
    """What `--data name=folder` says.

    Raises:
        UsageError: one is not of that form.
    """
    named = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--data {pair!r} is not name=folder; expected e.g. --data general=data/general")
        named[name] = folder
    return named


def key_without_server(variable: str) -> UsageError:
    """The error for a key that nobody would be shown."""
    return UsageError(
        f"a key (--key-variable {variable}) is for a server; expected --endpoint, too; add it, or leave the key out"
    )
