"""What an agent's code runs in: the sandbox, behind two small protocols so that tests can do without it.

In: code of a model. Out: what it printed, as the agent reads it. Nothing of it runs in this process. Refused: a machine
where nothing isolates code, unless `unsafe` says that this is meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from blockexpand.sandbox import Limits, Session, describe, passes, run_program

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


_SESSION_CPU_SECONDS = 600
"""Of all calls of an episode together; each has its own 30 seconds on the wall."""


@dataclass(frozen=True, kw_only=True)
class _SandboxShell:
    session: Session

    def run(self, code: str) -> Ran:
        outcome = self.session.run(code, wall_seconds=CALL_SECONDS, output_chars=CALL_CHARACTERS)
        parts = [part.rstrip("\n") for part in (outcome.stdout, outcome.stderr) if part.strip()]
        return Ran(status=outcome.status, text=_cut("\n".join(parts)))


def _cut(text: str) -> str:
    """The first 2,000 characters, and word of the rest."""
    if len(text) <= CALL_CHARACTERS:
        return text
    return f"{text[:CALL_CHARACTERS]}\n(cut after {CALL_CHARACTERS:,} characters)"


@dataclass(frozen=True, kw_only=True)
class SandboxTools:
    """The sandbox of this machine."""

    unsafe: bool = False
    """Whether code may run where nothing isolates it."""

    @contextlib.contextmanager
    def shell(self) -> Generator[_SandboxShell]:
        """A Python of its own for an episode; its process starts with the first call."""
        with Session(Limits(cpu_seconds=_SESSION_CPU_SECONDS), unsafe=self.unsafe) as session:
            yield _SandboxShell(session=session)

    def passes(self, program: str, tests: str) -> bool:
        """Whether the tests ran to their end and passed, within 10 seconds."""
        return passes(program, tests, Limits(wall_seconds=TESTS_SECONDS), unsafe=self.unsafe).status == "ok"

    def describe(self) -> str:
        """What isolates code here.

        Raises:
            SandboxError: nothing does, and `unsafe` is off.
        """
        run_program("", unsafe=self.unsafe)
        return "none: --unsafe was given" if self.unsafe else describe()
