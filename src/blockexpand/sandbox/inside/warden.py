"""The warden: builds the walls, starts the program behind them, watches it, and ends with everything that is left.

In: one frame on descriptor 0 (what to run, what to show, the limits), then bytes that steer: `i` interrupts; their
end means that whoever asked has gone. Out: frames on the report's descriptor:
`{"refused": reason}` when a wall does not stand, else `{"stands": True}` and then `{"status", "exit", "passed"}`.

It is process 1 of its namespace: it cannot be killed from inside, nor looked into, and when it ends the kernel kills
every process that the program left. Memory, CPU seconds and processes are summed over all of them, every few
milliseconds, because limits of single processes say nothing about many.
"""

from __future__ import annotations

import _signal  # ty: ignore[import-not-found] (`signal` itself costs 3 ms)
import fcntl
import marshal
import os
import select
import sys
import time

from blockexpand.sandbox.inside import frames, walls
from blockexpand.sandbox.inside.program import READY

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from collections.abc import Callable
    from typing import Any, NoReturn

_LOOK_SECONDS = 0.005
"""A core touches about 10 MB of fresh memory in that time (measured here); a look costs 0.1 ms."""

_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_SIGINT, _SIGKILL = 2, 9

PLACE = "/run/blockexpand"
"""Where this folder lies inside."""

BOOT = """import sys
for name in ("blockexpand", "blockexpand.sandbox"):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [sys.argv[1]]
from blockexpand.sandbox.inside import {module}
{module}.main()
"""
"""Starts a module of this folder without the packages above it, which are not inside."""


def main() -> NoReturn:
    """The launcher: reads what to do, enters the namespaces, makes process 1 and waits for it."""
    report = int(sys.argv[2])
    spec = marshal.loads(frames.receive(0))
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # a machine short of memory takes this first
    try:
        user = None if spec["unsafe"] else walls.enter_namespaces()
        walls.set_readable(False)  # not before: an unreadable process may not map its users
    except walls.WallError as error:
        _refuse(report, error)
    child = os.fork()
    if child == 0:
        _guard(spec, user, report)
    os.closerange(0, 1024)
    os.waitpid(child, 0)
    os._exit(0)


def _refuse(report: int, error: Exception) -> NoReturn:
    frames.send(report, marshal.dumps({"refused": str(error)}))
    os._exit(1)


def _guard(spec: dict[str, Any], user: int | None, report: int) -> NoReturn:
    _signal.signal(_SIGINT, _signal.SIG_DFL)  # Python's handler would let the program end its warden
    try:
        walls.die_with_parent()
        given = {name: spec[name] for name in ("program", "packages", "guarded")}
        stdin, payload = _hold(spec["stdin"].encode("utf-8", "surrogatepass")), _hold(marshal.dumps(given))
        if not spec["unsafe"]:
            shown = [(path, place) for path, place in spec["shown"]]
            walls.build_root([*shown, (spec["folder"], f"{PLACE}/inside")], spec["limits"]["file_bytes"], user)
        else:
            os.chdir(spec["workspace"])
    except (walls.WallError, OSError) as error:
        _refuse(report, error)
    to_program, tests = spec["channel"], None
    if spec["mode"] == "tests":
        outward, inward = os.pipe(), os.pipe()
        to_program = [outward[0], inward[1]]
        tests = Tests(spec["tests"], inward[0], outward[1])
    program = os.fork()
    if program == 0:
        _become_program(spec, user, [stdin, payload, *to_program], report)
    for descriptor in to_program:
        os.close(descriptor)
    _watch(spec, program, tests, report)


class Tests:
    """The tests and a secret, given to the program's process when its own code has ended; it has to come back."""

    def __init__(self, source: str, hear: int, tell: int) -> None:
        """Pipes from and to the program."""
        self._secret = os.urandom(16).hex().encode()
        self._left = memoryview(frames.framed(marshal.dumps((source, self._secret))))
        self.hear, self.tell = hear, tell
        self._heard = b""
        os.set_blocking(hear, False)
        os.set_blocking(tell, False)

    def listen(self) -> bool:
        """Read what the program's process says; whether it has just said that the program has ended."""
        before = len(self._heard)
        while len(self._heard) < 2 * len(self._secret):
            try:
                data = os.read(self.hear, 64)
            except BlockingIOError:
                break
            if not data:
                break
            self._heard += data
        return before == 0 and len(self._heard) > 0

    def give(self) -> bool:
        """Write as much of the tests as goes into the pipe; whether all is written."""
        try:
            while self._left:
                self._left = self._left[os.write(self.tell, self._left) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return True

    @property
    def passed(self) -> bool:
        """Whether exactly the secret came back."""
        return self._heard == READY + self._secret


def _hold(data: bytes) -> int:
    """A descriptor to read `data` from, that nobody can write to."""
    held = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(held, view) :]
    os.lseek(held, 0, os.SEEK_SET)
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return held


def _confine(spec: dict[str, Any], user: int | None) -> None:
    """A user, limits and a filter; in unsafe mode the limits alone."""
    os.setsid()
    walls.limit(spec["limits"], count_processes=not spec["unsafe"] and walls.counts_processes(user))
    if not spec["unsafe"]:
        walls.drop(user)


def _become_program(spec: dict[str, Any], user: int | None, descriptors: list[int], report: int) -> NoReturn:
    try:
        held = [fcntl.fcntl(number, fcntl.F_DUPFD, 200) for number in descriptors]
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 300)
        for number, place in zip(held, (0, 3, 4, 5), strict=False):
            os.dup2(number, place)
        os.closerange(2 + len(descriptors), 300)
        _confine(spec, user)
        module = "shell" if spec["mode"] == "session" else "program"
        place = os.path.dirname(spec["folder"]) if spec["unsafe"] else PLACE
        command = [spec["python"], "-P", "-s", "-S", "-c", BOOT.format(module=module), place]
        os.execve(spec["python"], command, spec["environment"])
    except (walls.WallError, OSError, ValueError) as error:
        _refuse(report, error)


def _watch(spec: dict[str, Any], program: int, tests: Tests | None, report: int) -> NoReturn:
    """Looks until the program ends or a limit is passed, then reports and takes everything along."""
    limits, deadline = spec["limits"], time.monotonic() + (spec["limits"]["wall_seconds"] or 1e9)
    end = os.pidfd_open(program)
    frames.send(report, marshal.dumps({"stands": True}))
    poll = select.poll()
    for descriptor in (0, end, *([tests.hear] if tests else ())):
        poll.register(descriptor, select.POLLIN)
    outcome: dict[str, Any] = {}
    while not outcome:
        ready = [descriptor for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000)]
        if 0 in ready:
            if not os.read(0, 1):
                break
            os.kill(program, _SIGINT)
        if tests is not None and tests.hear in ready and tests.listen():
            poll.unregister(tests.hear)
            poll.register(tests.tell, select.POLLOUT)
            if not spec["unsafe"]:
                _kill_others(program)
        if tests is not None and tests.tell in ready and tests.give():
            poll.unregister(tests.tell)
        if end in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
            if tests is not None:
                tests.listen()
            outcome = {"status": "ended", "exit": code, "passed": tests is not None and tests.passed}
            break
        status, used = _look(program, limits, spec["unsafe"])
        if time.monotonic() > deadline or (limits["cpu_seconds"] and used > limits["cpu_seconds"]):
            status = "timeout"
        if status:
            outcome = {"status": status, "exit": None}
        _reap(program)
    if outcome:
        frames.send(report, marshal.dumps(outcome))
    if spec["unsafe"]:
        _kill(os.killpg, program)
    os._exit(0)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _kill_others(program: int) -> None:
    """End what the program has started, before the tests are there to be read."""
    for process in _processes():
        if process not in (1, program):
            _kill(os.kill, process)


def _kill(how: Callable[[int, int], None], number: int) -> None:
    try:
        how(number, _SIGKILL)
    except ProcessLookupError:
        return


def _reap(program: int) -> None:
    """Takes the exit codes of orphans: they become children of process 1."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == program:
            return
        os.waitpid(found.si_pid, 0)


def _look(program: int, limits: dict[str, int], unsafe: bool) -> tuple[str, float]:
    """The limit that is passed ("" for none), and the CPU seconds used, over all processes."""
    everyone = [program] if unsafe else _processes()
    resident, ticks, tasks = 0, 0, 0
    for process in everyone:
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))  # its own and its dead children's
        if process == 1:
            continue
        tasks += int(fields[17])
        resident += int(fields[21]) * _PAGE
    if resident > limits["memory_bytes"]:  # pages that forks share are counted in each: look closely
        resident = sum(_proportional(process) for process in everyone if process != 1)
    over = resident > limits["memory_bytes"] or (not unsafe and tasks > limits["processes"] + 1)
    return ("memory" if resident > limits["memory_bytes"] else "killed") if over else "", ticks / _TICKS


def _proportional(process: int) -> int:
    """Resident bytes with shared pages divided among those who share them."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0
