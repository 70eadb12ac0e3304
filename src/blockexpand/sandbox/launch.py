"""Starts the warden with a program, reads what comes back within limits, and ends it whole.

In: what to run, the limits. Out: a `Launch` that is fed and read; whatever happens, closing it leaves no process. The
child gets an empty environment and no descriptor but its own pipes. Raises SandboxError when a wall does not stand.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import dataclasses
import importlib
import marshal
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from blockexpand.errors import SandboxError
from blockexpand.sandbox.inside import frames, warden
from blockexpand.sandbox.limits import Limits

_FOLDER = Path(__file__).resolve().parent / "inside"

_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets print in the same order each time
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MiB of address space
}

_GRACE_SECONDS = 10.0
"""The warden ends a program in time; this is for a warden that does not."""


@cache
def _interpreter(unsafe: bool) -> dict[str, Any]:
    """The Python that runs inside, the folders it needs (source, place), and the packages installed beside this one.

    Packages below /tmp or /dev/shm, which are empty inside, have another place there.
    """
    python = os.path.realpath(sys.executable)
    folders = [os.path.realpath(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    packages = [path for path in dict.fromkeys(folders) if os.path.isdir(path)]
    places = [path if unsafe else _place(path, number) for number, path in enumerate(packages)]
    shown: dict[str, str] = {}
    bases = [os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix)]
    for path, place in (*zip(bases, bases, strict=True), *zip(packages, places, strict=True)):
        if place != path or not any(Path(path).is_relative_to(other) for other in ("/usr", *shown)):
            shown[path] = place
    for module in ("program", "shell"):  # compiled now, once: inside nothing can be written
        importlib.import_module(f"blockexpand.sandbox.inside.{module}")
    return {"python": python, "packages": places, "shown": [[path, place] for path, place in shown.items()]}


_EMPTY_INSIDE = ("/tmp", "/dev/shm")


def _place(path: str, number: int) -> str:
    hidden = any(Path(path).is_relative_to(folder) for folder in _EMPTY_INSIDE)
    return f"{warden.PLACE}/packages-{number}" if hidden else path


_WELL_KNOWN = {
    "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string",
}  # fmt: skip


def guarded_modules(tests: str) -> list[str]:
    """The modules that the tests import, or use by a well-known name: they are put back as they were before the
    program ran. None, where the tests are no Python: they fail anyway."""
    try:
        nodes = list(ast.walk(ast.parse(tests)))
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return sorted(found | ({node.id for node in nodes if isinstance(node, ast.Name)} & _WELL_KNOWN))


class Text:
    """What came from one stream, decoded, up to a limit."""

    def __init__(self, most_chars: int) -> None:
        """At most `most_chars` are kept."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._room = most_chars
        self.is_over = False

    def add(self, data: bytes) -> None:
        """The next bytes; beyond the limit they are dropped and `is_over` says so."""
        text = self._decoder.decode(data)
        self.is_over |= len(text) > self._room
        self._parts.append(text[: self._room])
        self._room -= len(self._parts[-1])

    def take(self) -> str:
        """All of it."""
        return "".join(self._parts)


class Launch:
    """A warden and its pipes: a context manager, at whose end nothing of it is left."""

    def __init__(
        self,
        limits: Limits,
        *,
        unsafe: bool,
        program: str = "",
        tests: str | None = None,
        stdin: str = "",
        channel: tuple[int, int] | None = None,
    ) -> None:
        """Starts a program, with tests or without, or a session: `channel` are its pipes, to read from and write to."""
        self._workspace = tempfile.TemporaryDirectory(prefix="blockexpand-unsafe-") if unsafe else None
        spec: dict[str, Any] = {
            **_interpreter(unsafe),
            "mode": "session" if channel else "program" if tests is None else "tests",
            "program": program,
            "tests": tests or "",
            "guarded": None if tests is None else guarded_modules(tests),
            "stdin": stdin,
            "unsafe": unsafe,
            # A session's pieces have a limit of time each, it has none.
            "limits": dataclasses.asdict(limits) | ({"wall_seconds": 0, "cpu_seconds": 0} if channel else {}),
            "channel": list(channel or ()),
            "folder": str(_FOLDER),
            "workspace": self._workspace.name if self._workspace else "",
            "environment": _ENVIRONMENT,
        }
        orders, self.control = os.pipe()
        self.stdout, out = os.pipe()
        self.stderr, errors = os.pipe()
        self.report, told = os.pipe()
        command = [spec["python"], "-I", "-S", "-c", warden.BOOT.format(module="warden"), str(_FOLDER.parent)]
        try:
            self._process = subprocess.Popen(
                [*command, str(told)],
                stdin=orders,
                stdout=out,
                stderr=errors,
                env={},
                cwd="/",
                pass_fds=(told, *(channel or ())),
            )
        except OSError as error:
            self._close_pipes()
            raise SandboxError(f"{spec['python']} cannot be started: {error.strerror}; it runs the sandbox") from None
        finally:
            for descriptor in (orders, out, errors, told):
                os.close(descriptor)
        with contextlib.suppress(BrokenPipeError):  # it has said why on its standard error, which is read next
            frames.send(self.control, marshal.dumps(spec))

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything: the warden goes when its orders end, and all that is inside goes with it."""
        self._close_pipes()
        try:
            self._process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_pipes(self) -> None:
        for descriptor in (self.control, self.stdout, self.stderr, self.report):
            os.close(descriptor)
        if self._workspace is not None:
            self._workspace.cleanup()

    def interrupt(self) -> None:
        """Ctrl-C for the program."""
        os.write(self.control, b"i")

    def gather(self, stdout: Text, stderr: Text, deadline: float) -> bytes | None:
        """Reads both streams until they end. What the warden reported; None when output or time was over."""
        poll = select.poll()
        streams = {self.stdout: stdout, self.stderr: stderr}
        told = b""
        waiting = {*streams, self.report}
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        while waiting:
            left = deadline + _GRACE_SECONDS - time.monotonic()
            if left <= 0:
                return None
            for descriptor, _ in poll.poll(left * 1000):
                data = os.read(descriptor, 1 << 16)
                if not data:
                    poll.unregister(descriptor)
                    waiting.discard(descriptor)
                elif descriptor == self.report:
                    told += data
                else:
                    streams[descriptor].add(data)
                    if streams[descriptor].is_over:
                        return None
        return told


def understand(told: bytes, stderr: str) -> dict[str, Any]:
    """The warden's last report; without one, the program was killed together with its warden. SandboxError when it
    says that a wall does not stand, or never began."""
    said: dict[str, Any] = {}
    while told:
        size = 8 + int.from_bytes(told[:8], "big")
        said |= marshal.loads(told[8:size])
        told = told[size:]
    if "refused" in said:
        raise SandboxError(f"no sandbox can be made here: {said['refused']}; {_ADVICE}")
    if not said:
        last = stderr.strip()[-500:] or "nothing on stderr"
        raise SandboxError(f"the sandbox ended without a word: {last}; {_ADVICE}")
    return {"status": "killed", "exit": None, "passed": False, **said}


_ADVICE = (
    "expected linux 5.12 or newer that lets this user make namespaces; docs/sandbox.md says how to allow it, or run "
    "the code unprotected with unsafe (--unsafe) on a machine with nothing to lose"
)
