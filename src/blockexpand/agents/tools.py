"""What an agent's code runs in: the sandbox, behind two small protocols so that tests can do without it.

In: code of a model. Out: what it printed, as the agent reads it. Nothing of it runs in this process.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

CALL_SECONDS = 30.0  # MINT, mint/tools/python_tool.py
CALL_CHARACTERS = 2_000  # the same
TESTS_SECONDS = 10.0  # MINT, mint/tasks/codegen.py


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of one call."""

    status: str
    """As the sandbox has it: ok, error, timeout, memory, output or killed."""
    text: str
    """What the code printed, the last expression's value and a traceback included."""


class Shell(Protocol):
    """A persistent Python of one episode."""

    def run(self, code: str) -> Ran:
        """Run code in it."""
        ...


class Tools(Protocol):
    """What runs a model's code."""

    def shell(self) -> AbstractContextManager[Shell]:
        """A new Python that lives until the context ends."""
        ...

    def passes(self, program: str, tests: str) -> bool:
        """Whether a program passes tests that run after it."""
        ...

    def describe(self) -> str:
        """What isolates the code here."""
        ...
