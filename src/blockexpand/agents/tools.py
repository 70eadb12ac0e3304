"""What an agent's code runs in: the sandbox.

In: code of a model. Out: what it printed, as the agent reads it. Nothing of it runs in this process. Refused: a machine
where nothing isolates code, unless `unsafe` says that this is meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

from blockexpand.sandbox import Limits, Session, describe, passes, run_program

CALL_SECONDS = 30.0  # MINT, mint/tools/python_tool.py
CALL_CHARACTERS = 2_000  # the same
TESTS_SECONDS = 10.0  # MINT, mint/tasks/codegen.py
_SESSION_CPU_SECONDS = 600
"""Of all calls of an episode together; each has its own 30 seconds on the wall."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of one call."""

    status: str
    """As the sandbox has it: ok, error, timeout, memory, output or killed."""
    text: str
    """What the code printed, the last expression's value and a traceback included."""


Shell = Callable[[str], Ran]
"""A persistent Python of one episode."""


@dataclass(frozen=True, kw_only=True)
class SandboxTools:
    """The sandbox of this machine."""

    unsafe: bool = False
    """Whether code may run where nothing isolates it."""

    @contextlib.contextmanager
    def shell(self) -> Generator[Shell]:
        """A Python of its own for an episode; its process starts with the first call."""
        with Session(Limits(cpu_seconds=_SESSION_CPU_SECONDS), unsafe=self.unsafe) as session:

            def run(code: str) -> Ran:
                outcome = session.run(code, wall_seconds=CALL_SECONDS, output_chars=CALL_CHARACTERS)
                text = "\n".join(part.rstrip("\n") for part in (outcome.stdout, outcome.stderr) if part.strip())
                if len(text) > CALL_CHARACTERS:
                    text = f"{text[:CALL_CHARACTERS]}\n(cut after {CALL_CHARACTERS:,} characters)"
                return Ran(status=outcome.status, text=text)

            yield run

    def passes(self, program: str, tests: str) -> bool:
        """Whether the tests ran to their end and passed, within 10 seconds."""
        return passes(program, tests, Limits(wall_seconds=TESTS_SECONDS), unsafe=self.unsafe).status == "ok"

    def printed(self, program: str) -> str:
        """What a program prints, within two seconds; nothing where it fails."""
        outcome = run_program(program, Limits(wall_seconds=2.0, cpu_seconds=1), unsafe=self.unsafe)
        return outcome.stdout if outcome.status == "ok" else ""

    def describe(self) -> str:
        """What isolates code here.

        Raises:
            SandboxError: nothing does, and `unsafe` is off.
        """
        run_program("", unsafe=self.unsafe)
        return "none: --unsafe was given" if self.unsafe else describe()
