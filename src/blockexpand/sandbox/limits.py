"""What a sandboxed program may use, and what came of it. Refuses limits that are none."""

from __future__ import annotations

import dataclasses
from typing import Literal

from blockexpand.errors import SandboxError

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]

_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use, all its processes together."""

    wall_seconds: float = 10.0
    """From start to end."""

    cpu_seconds: int = 10
    """Processor time, summed over its processes, dead ones included."""

    memory_bytes: int = 1024 * _MIB
    """Resident memory, summed over its processes; files in /tmp are apart."""

    processes: int = 32
    """Processes and threads at one time."""

    file_bytes: int = 64 * _MIB
    """All files in /tmp and /dev/shm together; they lie in memory."""

    output_chars: int = 100_000
    """Of standard output, and of standard error; more ends the program."""

    def __post_init__(self) -> None:
        """SandboxError for a limit that nothing could run under."""
        smallest = {
            "wall_seconds": 0.1, "cpu_seconds": 1, "memory_bytes": 32 * _MIB, "processes": 1, "file_bytes": 4096,
            "output_chars": 1,
        }  # fmt: skip
        for name, value in dataclasses.asdict(self).items():
            least = smallest[name]
            if not value >= least:
                raise SandboxError(f"limit {name} is {value}, expected at least {least}; nothing runs with less")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    status: Status
    """ok: it ended by itself, with 0 (with tests: they ran to their end and passed); error: with anything else, or its
    tests failed; timeout, memory, output: it passed that limit; killed: by a signal, or for too many processes."""

    exit_code: int | None
    """What it ended with, negative for a signal; None when it did not end by itself."""

    stdout: str
    """What it printed, up to the limit. With tests, the program and they print to the same place."""

    stderr: str
    """The same of standard error. With failing tests, their traceback stands at its end."""

    seconds: float
    """From the call to its return, starting and isolation included."""
