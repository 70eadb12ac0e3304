"""Runs a program in the sandbox, and a program against its tests.

In: source text and limits. Out: an `Outcome`, never an exception for what the program does. Raises SandboxError when
this machine can isolate nothing and `unsafe` was not said.
"""

from __future__ import annotations

import os
import time

from blockexpand.errors import SandboxError
from blockexpand.sandbox.inside import syscalls
from blockexpand.sandbox.launch import Launch, Text, understand
from blockexpand.sandbox.limits import Limits, Outcome, Status

_OUT_OF_CPU = 24
"""SIGXCPU."""


def run_program(code: str, limits: Limits | None = None, stdin: str = "", unsafe: bool = False) -> Outcome:
    """Runs `code` as `python program.py < stdin` would, alone: no network, a read-only system, an empty /tmp, no other
    process in sight, nothing left after.

    The standard library and the packages installed beside this one can be imported. SandboxError when isolation is
    not to be had here; with `unsafe` the code runs with limits but without walls.
    """
    return _run(code, None, stdin, limits or Limits(), unsafe)


def passes(program: str, tests: str, limits: Limits | None = None, unsafe: bool = False) -> Outcome:
    """Whether `program` passes `tests`: status ok only if the tests ran to their last line without an exception.

    The tests run in the program's process after it, with its names. That they passed is told by a secret that comes
    into the process with the tests, once the program's own code has ended, and by exit code 0: ending early, printing
    a result, a changed builtin or module pass nothing. An object that equals everything does, and so may a program
    that is written against this harness: docs/sandbox.md.
    """
    return _run(program, tests, "", limits or Limits(), unsafe)


def _run(program: str, tests: str | None, stdin: str, limits: Limits, unsafe: bool) -> Outcome:
    begun = time.monotonic()
    stdout, stderr = Text(limits.output_chars), Text(limits.output_chars)
    with Launch(limits, unsafe=unsafe, program=program, tests=tests, stdin=stdin) as launch:
        told = launch.gather(stdout, stderr, begun + limits.wall_seconds)
    seconds = time.monotonic() - begun
    errors = stderr.take()
    if told is None:
        status: Status = "output" if stdout.is_over or stderr.is_over else "timeout"
        return Outcome(status=status, exit_code=None, stdout=stdout.take(), stderr=errors, seconds=seconds)
    report = understand(told, errors)
    code, status = report["exit"], report["status"]
    if status == "ended":
        status = _ended(code, errors)
        if status == "ok" and tests is not None and not report["passed"]:
            status, code, errors = "error", 1, f"{errors}the program ended before its tests did\n"
    return Outcome(status=status, exit_code=code, stdout=stdout.take(), stderr=errors, seconds=seconds)


def _ended(code: int, errors: str) -> Status:
    if code == -_OUT_OF_CPU:
        return "timeout"
    if code < 0:
        return "killed"
    if code and errors.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "error" if code else "ok"


_PROBE = "import os\nprint(os.getuid(), os.getpid(), len([n for n in os.listdir('/proc') if n.isdigit()]))"


def describe() -> str:
    """What isolates model-written code on this machine, in a few lines; found out by doing it."""
    system = f"linux {os.uname().release} on {syscalls.processor()}"
    try:
        outcome = run_program(_PROBE)
    except SandboxError as error:
        return f"sandbox: none\n  {error}\n  {system}"
    user, process, visible = outcome.stdout.split()
    way = f"as root, programs run as user {user}" if os.geteuid() == 0 else "in a user namespace, without rights"
    return (
        f"sandbox: namespaces (mounts, processes, network, IPC, names, cgroups) made {way}\n"
        f"  a read-only root with /usr and this Python, /tmp in memory, {visible} processes in sight\n"
        f"  (the program is process {process})\n"
        "  no capabilities, a seccomp filter, rlimits; memory, processor time and processes summed by a warden\n"
        f"  {system}, {outcome.seconds:.3f} s for an empty program"
    )
