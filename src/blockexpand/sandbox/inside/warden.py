"""The warden: builds the walls, starts the program behind them, watches it, and ends with everything that is left.

In: one frame on descriptor 0 (what to run, what to show, the limits), then bytes that steer: `i` interrupts; their
end means that whoever asked has gone. Out: frames on the report's descriptor:
`{"refused": reason}` when a wall does not stand, else `{"stands": True}` and then `{"status", "exit", "verdict"}`.

It is process 1 of its namespace: it cannot be killed from inside, nor looked into, and when it ends the kernel kills
every process that the program left. Memory, CPU seconds and processes are summed over all of them, every few
milliseconds, because limits of single processes say nothing about many.
"""

from __future__ import annotations

import _signal  # ty: ignore[import-not-found] (`signal` itself costs 3 ms)
import fcntl
import os
import select
import sys
import time

from blockexpand.sandbox.inside import codec, walls

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from typing import Any, NoReturn

_LOOK_SECONDS = 0.005
"""A core touches about 10 MB of fresh memory in that time (measured here); a look costs 0.1 ms."""
_PARTING_SECONDS = 0.25
"""How long a program whose tests failed may take to end by itself: more on a busy machine."""

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
    spec = codec.load(codec.receive(0))
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
    codec.send(report, codec.dump({"refused": str(error)}))
    os._exit(1)


def _guard(spec: dict[str, Any], user: int | None, report: int) -> NoReturn:
    _signal.signal(_SIGINT, _signal.SIG_DFL)  # Python's handler would let the program end its warden
    try:
        walls.die_with_parent()
        judge = None
        if spec["mode"] == "judge":
            from blockexpand.sandbox.inside import judge
        stdin, payload = _hold(spec["stdin"].encode("utf-8", "surrogatepass")), _hold(codec.dump(_for_program(spec)))
        if not spec["unsafe"]:
            shown = [(path, place) for path, place in spec["shown"]]
            walls.build_root([*shown, (spec["folder"], f"{PLACE}/inside")], spec["limits"]["file_bytes"], user)
        else:
            os.chdir(spec["workspace"])
    except (walls.WallError, OSError) as error:
        _refuse(report, error)
    to_program, from_program, verdict, processes = spec["channel"], None, -1, []
    if judge is not None:
        outward, inward = os.pipe(), os.pipe()
        verdict, told = os.pipe()
        to_program = [outward[0], inward[1]]
        from_program = (inward[0], outward[1])
    program = os.fork()
    if program == 0:
        _become_program(spec, user, [stdin, payload, *to_program], report)
    processes.append(program)
    for descriptor in to_program:
        os.close(descriptor)
    if judge is not None:
        assert from_program is not None
        tester = os.fork()
        if tester == 0:
            os.close(report)
            os.dup2(stdin, 0)  # what was there steers the warden
            _confine(spec, user)
            walls.set_readable(False)
            judge.main(spec["tests"], from_program, told)
        processes.append(tester)
        for descriptor in (*from_program, told):
            os.close(descriptor)
    _watch(spec, processes, verdict, report)


def _hold(data: bytes) -> int:
    """A descriptor to read `data` from, that nobody can write to."""
    held = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(held, view) :]
    os.lseek(held, 0, os.SEEK_SET)
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return held


def _for_program(spec: dict[str, Any]) -> dict[str, Any]:
    return {"program": spec["program"], "packages": spec["packages"], "served": spec["mode"] == "judge"}


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


def _watch(spec: dict[str, Any], processes: list[int], verdict: int, report: int) -> NoReturn:
    """Looks until the program (or its judge) ends or a limit is passed, then reports and takes everything along."""
    limits, deadline = spec["limits"], time.monotonic() + (spec["limits"]["wall_seconds"] or 1e9)
    ends = {os.pidfd_open(process): process for process in processes}
    codec.send(report, codec.dump({"stands": True}))
    poll = select.poll()
    for descriptor in (0, *ends):
        poll.register(descriptor, select.POLLIN)
    told = b""
    outcome: dict[str, Any] = {}
    while not outcome:
        ready = [descriptor for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000)]
        if 0 in ready:
            order = os.read(0, 1)
            if not order:
                break
            os.kill(processes[0], _SIGINT)
        for descriptor in [d for d in ready if d in ends]:
            poll.unregister(descriptor)
            code = os.waitstatus_to_exitcode(os.waitpid(ends[descriptor], 0)[1])
            if ends[descriptor] == processes[-1]:  # the judge, where there is one
                outcome = {"status": "ended", "exit": code}
            else:
                told = b"%d" % code
        if not outcome:
            status, used = _look(processes, limits, spec["unsafe"])
            if limits["cpu_seconds"] and used > limits["cpu_seconds"]:
                status = "timeout"
            if time.monotonic() > deadline:
                status = "timeout"
            if status:
                outcome = {"status": status, "exit": None}
        _reap(processes)
    if outcome:
        outcome["verdict"] = os.read(verdict, 1 << 16) if verdict >= 0 and outcome["status"] == "ended" else b""
        if outcome["verdict"] and not told and not codec.load(outcome["verdict"][8:])["passed"]:
            told = _parting(processes[0])
        outcome["program"] = int(told) if told else None
        codec.send(report, codec.dump(outcome))
    if spec["unsafe"]:
        _kill_groups(processes)
    os._exit(0)


def _parting(program: int) -> bytes:
    """The exit code of a program that ends about when its judge does: that sees the pipe closed before the program is
    gone, and why the program ended is then the answer. Nothing, where it goes on."""
    deadline = time.monotonic() + _PARTING_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(program, os.WNOHANG)
        if found:
            return b"%d" % os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return b""


def _reap(processes: list[int]) -> None:
    """Takes the exit codes of orphans: they become children of process 1."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in processes:
            return
        os.waitpid(found.si_pid, 0)


def _kill_groups(processes: list[int]) -> None:
    for process in processes:
        try:
            os.killpg(process, _SIGKILL)
        except ProcessLookupError:
            continue


def _look(processes: list[int], limits: dict[str, int], unsafe: bool) -> tuple[str, float]:
    """The limit that is passed ("" for none), and the CPU seconds used, over all processes."""
    everyone = processes if unsafe else [int(name) for name in os.listdir("/proc") if name.isdigit()]
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
    over = resident > limits["memory_bytes"] or (not unsafe and tasks > limits["processes"] + len(processes))
    return ("memory" if resident > limits["memory_bytes"] else "killed") if over else "", ticks / _TICKS


def _proportional(process: int) -> int:
    """Resident bytes with shared pages divided among those who share them."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0
