"""The system calls a sandboxed program may not make, as a seccomp filter written here for two processors.

In: nothing. Out: a BPF program that the kernel runs before each system call of the process and all its children, for
good. Denied are what reaches other processes' memory, what makes or enters namespaces and mounts, keys, BPF, io_uring
and AIO, anonymous shared memory that no limit counts, System V IPC and queues, the clock, modules, and every call newer
than this list: what is not known is not there. Sockets are of the unix family or none. Refuses other processors.

Sources: kernel headers (asm/unistd_64.h, asm-generic/unistd.h of linux 6.1), seccomp(2), linux/bpf_common.h; what to
deny was chosen beside Docker's list of what its default profile blocks (docs.docker.com/engine/security/seccomp).
"""

from __future__ import annotations

import errno
import os
import struct


class Numbers:
    """What a processor's calls are numbered."""

    def __init__(self, *, arch: int, clone: int, socket: int, ioctl: int, denied: tuple[int, ...]) -> None:
        """`arch` is the kernel's AUDIT_ARCH; `denied` are the calls denied whatever their arguments."""
        self.arch, self.clone, self.socket, self.ioctl, self.denied = arch, clone, socket, ioctl, denied


_X86 = Numbers(
    arch=0xC000003E, clone=56, socket=41, ioctl=16,
    denied=(
        163, 248, 159, 321, 161, 305, 227, 176, 300, 313, 431, 432, 430, 433, 239, 175, 206, 209, 425, 426, 427, 173,
        172, 312, 320, 246, 250, 444, 212, 237, 319, 447, 256, 154, 165, 442, 429, 279, 240, 68, 303, 180, 304, 428,
        298, 135, 438, 155, 440, 448, 310, 311, 101, 179, 443, 169, 216, 249, 317, 64, 238, 450, 171, 170, 308, 164,
        30, 29, 168, 167, 103, 166, 272, 323, 134, 136, 139, 153, 278,
    ),
)  # fmt: skip
_ARM = Numbers(
    arch=0xC00000B7, clone=220, socket=198, ioctl=29,
    denied=(
        89, 217, 171, 280, 51, 266, 112, 106, 262, 273, 431, 432, 430, 433, 236, 105, 0, 2, 425, 426, 427, 272, 294,
        104, 219, 444, 18, 235, 279, 447, 238, 40, 442, 429, 239, 180, 186, 264, 42, 265, 428, 241, 92, 438, 41, 440,
        448, 270, 271, 117, 60, 443, 142, 234, 218, 277, 190, 237, 450, 162, 161, 268, 170, 196, 194, 225, 224, 116,
        39, 97, 282, 58, 75,
    ),
)  # fmt: skip
_CLONE3 = 435
_TABLES = {"x86_64": _X86, "aarch64": _ARM}

_NEWEST = 456
"""futex_requeue, of linux 6.7. Later calls are answered as an older kernel would: there is no such call."""

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} of linux/sched.h."""

_TYPING_FOR_OTHERS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX (asm-generic/ioctls.h): they type into a terminal."""

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Offsets in struct seccomp_data; the lower halves of arguments on a little-endian machine."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def processor() -> str:
    """The processor's name as the kernel gives it."""
    return os.uname().machine


def build(machine: str) -> bytes:
    """The BPF program for `machine` (a key of the tables; KeyError otherwise), eight bytes an instruction."""
    table = _TABLES[machine]

    def put(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, if_true, if_false, value))

    def answer(number: int, action: int) -> None:
        put(_EQUAL, number, 0, 1)
        put(_RETURN, action)

    program: list[bytes] = []
    denied = _ERROR | errno.EPERM
    put(_LOAD, _ARCHITECTURE)
    put(_EQUAL, table.arch, 1, 0)
    put(_RETURN, _KILL)  # 32-bit calls have other numbers
    put(_LOAD, _NUMBER)
    put(_GREATER, _NEWEST, 0, 1)  # x32 calls too: they begin at 2^30
    put(_RETURN, _ERROR | errno.ENOSYS)
    answer(_CLONE3, _ERROR | errno.ENOSYS)  # its flags lie in memory, where no filter sees them
    for number in table.denied:
        answer(number, denied)
    put(_EQUAL, table.clone, 0, 4)
    put(_LOAD, _FIRST)
    put(_ANY_BIT, _NEW_NAMESPACES, 0, 1)
    put(_RETURN, denied)
    put(_RETURN, _ALLOW)
    put(_EQUAL, table.socket, 0, 4)
    put(_LOAD, _FIRST)
    put(_EQUAL, 1, 1, 0)  # AF_UNIX
    put(_RETURN, denied)
    put(_RETURN, _ALLOW)
    put(_EQUAL, table.ioctl, 0, 5)
    put(_LOAD, _SECOND)
    for request in _TYPING_FOR_OTHERS:
        answer(request, denied)
    put(_RETURN, _ALLOW)
    return b"".join(program)
