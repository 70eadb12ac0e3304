"""Every system call by which a process changes files, stopped one by one: looked at, refused, cut short, or the last.

In: a function to run in a forked child, a folder, and what to do at each call that concerns files below it. Out:
the calls as they were made, and how the child ended. It is ptrace with a seccomp filter, as strace has it: nothing
of the code under test is replaced, and no call can be overlooked because it was made in C or in a thread. Linux on
x86-64 only; `unavailable` says so elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from blockexpand.errors import BlockexpandError

# Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
CALLS = {
    1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 328: "pwritev2", 40: "sendfile", 275: "splice",
    326: "copy_file_range", 76: "truncate", 77: "ftruncate", 285: "fallocate", 74: "fsync", 75: "fdatasync",
    277: "sync_file_range", 306: "syncfs", 162: "sync", 2: "open", 85: "creat", 257: "openat", 437: "openat2",
    82: "rename", 264: "renameat", 316: "renameat2", 83: "mkdir", 258: "mkdirat", 84: "rmdir", 87: "unlink",
    263: "unlinkat", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat", 90: "chmod", 91: "fchmod",
    268: "fchmodat", 280: "utimensat", 16: "ioctl", 9: "mmap", 425: "io_uring_setup",
}  # fmt: skip
_BY_HANDLE = {  # the argument that is the file written to
    "write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "pwritev2": 0, "sendfile": 0, "splice": 2,
    "copy_file_range": 2, "ftruncate": 0, "fallocate": 0, "fsync": 0, "fdatasync": 0, "sync_file_range": 0,
    "syncfs": 0, "fchmod": 0, "ioctl": 0,
}  # fmt: skip
_BY_NAME = {  # the arguments that are names; before each of the second kind stands its folder's handle
    "open": ((None, 0),), "creat": ((None, 0),), "openat": ((0, 1),), "truncate": ((None, 0),),
    "rename": ((None, 0), (None, 1)), "renameat": ((0, 1), (2, 3)), "renameat2": ((0, 1), (2, 3)),
    "mkdir": ((None, 0),), "mkdirat": ((0, 1),), "rmdir": ((None, 0),), "unlink": ((None, 0),),
    "unlinkat": ((0, 1),), "link": ((None, 0), (None, 1)), "linkat": ((0, 1), (2, 3)), "symlink": ((None, 1),),
    "symlinkat": ((1, 2),), "chmod": ((None, 0),), "fchmodat": ((0, 1),), "utimensat": ((0, 1),),
}  # fmt: skip
COUNT = {"write": 2, "pwrite64": 2, "copy_file_range": 4, "sendfile": 3, "splice": 4}
"""The argument that says how many bytes to write."""
_FLAGS = {"open": 1, "openat": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D  # linux/fs.h
_REMOVE_FOLDER = 0x200  # AT_REMOVEDIR, linux/fcntl.h
EXCHANGE = 2  # RENAME_EXCHANGE, linux/fs.h

# linux/ptrace.h
_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # TRACESYSGOOD, FORK, VFORK, CLONE, SECCOMP; EXITKILL
_EVENT_SECCOMP = 7
_ALL_KINDS = 0x40000000  # __WALL, linux/wait.h


_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip


class _Registers(ctypes.Structure):
    """user_regs_struct of sys/user.h."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]


_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One system call that is about to change a file."""

    name: str
    """As the kernel calls it; `unlinkat` that removes a folder is `rmdir`, and an exchanging rename `exchange`."""
    paths: tuple[str, ...]
    """The files or folders it concerns."""
    num_bytes: int = 0
    """How many bytes it would write, where it says so."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """End the process: before the call, or after so many bytes of it."""

    after_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fail:
    """The call is not made, and returns this error."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Shorten:
    """The call writes only so many bytes, and says so."""

    num_bytes: int


Act = Kill | Fail | Shorten | None
Decide = Callable[[int, Call], Act]


@dataclass(kw_only=True)
class Outcome:
    """How the child ended."""

    calls: list[Call] = field(default_factory=list)
    killed: bool = False
    error: str | None = None
    """The message, when one of our errors ended it."""
    crash: str | None = None
    """The traceback, when something else did."""


def unavailable() -> str | None:
    """Why there is no tracing here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the numbers of system calls are those of Linux on x86-64, this is {sys.platform} {platform.machine()}"
    try:
        outcome = run(lambda: os.mkdir("/nowhere/at/all"), "/nowhere", lambda _, __: Fail(number=errno.EXDEV))
    except OSError as error:
        return f"ptrace is not allowed here: {error}"
    return None if "EXDEV" in (outcome.crash or "") or "cross-device" in (outcome.crash or "") else "no seccomp here"


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    return libc


LIBC = _libc()


def _ptrace(request: int, task: int, address: int = 0, data: int = 0) -> None:
    if LIBC.ptrace(request, task, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request}: {os.strerror(number)}")


def _filter() -> None:
    """Let the kernel stop this process at the calls of the table, and at no others."""

    def op(code: int, then: int, otherwise: int, value: int) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value)

    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    program = op(load, 0, 0, 0)
    # Most files are opened to be read, and most memory is mapped for oneself: where (argument 2, argument 3) says so,
    # there is no need to stop.
    for name, offset, bits in (("openat", 32, _WRITING), ("mmap", 40, 0x1)):
        number = next(n for n, known in CALLS.items() if known == name)
        program += op(equal, 0, 4, number) + op(load, 0, 0, offset) + op(any_of, 1, 0, bits)
        program += op(give, 0, 0, 0x7FFF0000) + op(give, 0, 0, 0x7FF00000)
    for i, number in enumerate(CALLS):
        program += op(equal, len(CALLS) - i, 0, number)
    program += op(give, 0, 0, 0x7FFF0000) + op(give, 0, 0, 0x7FF00000)  # allow; trace
    buffer = ctypes.create_string_buffer(program)
    whole = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if LIBC.prctl(22, 2, ctypes.create_string_buffer(whole), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def _child(work: Callable[[], object], pipe: int) -> None:
    code, words = 0, ""
    try:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _filter()
        work()
    except BlockexpandError as error:
        code, words = 2, str(error)
    except BaseException:
        code, words = 1, traceback.format_exc()
    os.write(pipe, words.encode()[-60_000:])
    os._exit(code)


def run(work: Callable[[], object], folder: str | Path, decide: Decide) -> Outcome:
    """Run `work` in a child; `decide` is asked at each call that concerns `folder`."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        _child(work, theirs)
    os.close(theirs)
    try:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            raise OSError(errno.EPERM, os.read(ours, 60_000).decode().strip().rpartition("\n")[2])
        _ptrace(_SETOPTIONS, child, 0, _OPTIONS)
        _ptrace(_CONT, child)
        outcome = _follow(child, os.fspath(folder), decide)
        words = os.read(ours, 60_000).decode()
    finally:
        os.close(ours)
    if outcome.error is not None or outcome.crash is not None:
        outcome.error, outcome.crash = (words, None) if outcome.error is not None else (None, words)
    return outcome


def _follow(child: int, folder: str, decide: Decide) -> Outcome:
    outcome = Outcome()
    while True:
        task, status = os.waitpid(-1, _ALL_KINDS)
        if os.WIFSIGNALED(status) or os.WIFEXITED(status):
            if task == child:
                outcome.killed = os.WIFSIGNALED(status)
                outcome.error = "" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 2 else None
                outcome.crash = "" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1 else None
                return outcome
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        with contextlib.suppress(ProcessLookupError):  # killed by us a moment ago
            if number == signal.SIGTRAP and event == _EVENT_SECCOMP:
                _at_call(task, child, folder, decide, outcome)
            elif number == signal.SIGTRAP | 0x80:
                os.kill(child, signal.SIGKILL)  # the call that was to be cut short has returned
            else:
                passed = 0 if number in (signal.SIGTRAP, signal.SIGSTOP) else number
                _ptrace(_CONT, task, 0, passed)


def _at_call(task: int, child: int, folder: str, decide: Decide, outcome: Outcome) -> None:
    registers = _Registers()
    _ptrace(_GETREGS, task, 0, ctypes.addressof(registers))
    values = [vars(_Registers)[name].__get__(registers) for name in _ARGUMENTS]
    call = _decoded(task, CALLS[registers.orig_rax], values)
    if call is None or not any(path == folder or path.startswith(folder + "/") for path in call.paths):
        _ptrace(_CONT, task)
        return
    act = decide(len(outcome.calls), call)
    outcome.calls.append(call)
    if isinstance(act, Kill) and act.after_bytes is None:
        os.kill(child, signal.SIGKILL)
        return
    if isinstance(act, Fail):
        registers.orig_rax = ctypes.c_ulonglong(-1).value
        registers.rax = ctypes.c_ulonglong(-act.number).value
    elif isinstance(act, Kill | Shorten):
        count = act.after_bytes if isinstance(act, Kill) else act.num_bytes
        setattr(registers, _ARGUMENTS[COUNT[call.name]], count)
    if act is not None:
        _ptrace(_SETREGS, task, 0, ctypes.addressof(registers))
    _ptrace(_SYSCALL if isinstance(act, Kill) else _CONT, task)


def _decoded(task: int, name: str, values: list[int]) -> Call | None:
    """The call in words, or None where it changes nothing."""
    if name == "ioctl" and values[1] not in (_FICLONE, _FICLONERANGE):
        return None
    if name in _FLAGS and not values[_FLAGS[name]] & _WRITING:
        return None
    if name == "mmap":
        shared_and_written = values[3] & 0x1 and values[2] & 0x2 and values[4] < 1 << 31
        return Call(name=name, paths=(_held(task, values[4]),)) if shared_and_written else None
    if name in _BY_HANDLE:
        num_bytes = values[COUNT[name]] if name in COUNT else 0
        return Call(name=name, paths=(_held(task, values[_BY_HANDLE[name]]),), num_bytes=num_bytes)
    if name not in _BY_NAME:
        raise AssertionError(f"the code under test uses {name}, which nobody here follows")
    paths = tuple(_named(task, None if at is None else values[at], values[what]) for at, what in _BY_NAME[name])
    if name == "unlinkat" and values[2] & _REMOVE_FOLDER:
        name = "rmdir"
    if name == "renameat2" and values[4] & EXCHANGE:
        name = "exchange"
    return Call(name=name, paths=paths)


def _held(task: int, handle: int) -> str:
    try:
        return os.readlink(f"/proc/{task}/fd/{handle & 0xFFFFFFFF}").removesuffix(" (deleted)")
    except OSError:
        return ""


def _named(task: int, at: int | None, address: int) -> str:
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        raw = b""
        while b"\0" not in raw and len(raw) < 4096:
            # Never across a page: the next one may not be there.
            raw += memory.read(4096 - (address + len(raw)) % 4096)
    path = os.fsdecode(raw.partition(b"\0")[0])
    here = at is None or at & 0xFFFFFFFF == 0xFFFFFF9C  # AT_FDCWD
    return os.path.normpath(os.path.join(os.readlink(f"/proc/{task}/cwd") if here else _held(task, at or 0), path))
