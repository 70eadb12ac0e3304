"""The walls: namespaces, a root of its own, a user of its own, no privileges, limits, the filter.

In: what to show (folders, read only) and the limits. Out: nothing; the calling process stands behind the walls. Each
step either holds or raises WallError with the step and the system's reason; nothing is skipped when it fails.

As root the namespaces are made with root's rights and the program becomes a user that nobody else is; as another user
a user namespace gives the rights to make the others, and the program stays that user with no rights in it. Mounts are
made with open_tree, mount_setattr and move_mount (linux 5.12): a copy is read only before it can be seen.
"""

from __future__ import annotations

import ctypes
import os
import resource

from blockexpand.sandbox.inside import syscalls

_LIBC = ctypes.CDLL(None, use_errno=True)

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _PRIVATE_ALL = 1, 2, 4, 8, 32, 0x40000 | 0x4000
_DETACH = 2
"""linux/sched.h and linux/mount.h."""

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
"""The first three have one number on all processors."""

_CLONE, _CLOEXEC, _RECURSIVE, _EMPTY_PATH, _FROM_EMPTY_PATH = 1, 0o2000000, 0x8000, 0x1000, 4
_HERE = -100
"""OPEN_TREE_*, AT_* and MOVE_MOUNT_F_EMPTY_PATH."""

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 22, 24, 38, 47
"""linux/prctl.h."""

INNER_USER = 1000
"""Who the program is inside a user namespace; who it is outside decides what it may read."""

_FREE_USERS = 0x70000000
"""From here to 0x7FFFFFFF users are of nobody (systemd.io/UIDS-GIDS); one for each process number, below 2^22."""

_HEADROOM_BYTES = 256 * 1024 * 1024
"""Address space is not memory: libraries, stacks and the interpreter reserve without using. Memory is counted apart."""


class WallError(Exception):
    """A step of the isolation failed: which, and why."""


def _check(result: int, step: str) -> int:
    if result < 0:
        raise WallError(f"{step}: {os.strerror(ctypes.get_errno())}")
    return result


def _call(number: int, step: str, *arguments: object) -> int:
    return _check(_LIBC.syscall(ctypes.c_long(number), *arguments), step)


def _control(option: int, value: int, step: str, third: int = 0) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0), step)


def die_with_parent() -> None:
    """SIGKILL for this process when the one that made it ends."""
    _control(_SET_PDEATHSIG, 9, "prctl(PR_SET_PDEATHSIG)")


def set_readable(readable: bool) -> None:
    """Whether processes of the same user may look into this one (memory, environment, descriptors)."""
    _control(_SET_DUMPABLE, int(readable), "prctl(PR_SET_DUMPABLE)")


def _own_user() -> int | None:
    """A user that nobody else is, if this process is root and may become it; else None."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/status", encoding="ascii") as lines:
        rights = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    if not all(rights >> number & 1 for number in (6, 7, 8, 18, 21)):  # SETGID SETUID SETPCAP SYS_CHROOT SYS_ADMIN
        return None
    wanted = _FREE_USERS + os.getpid()
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    if any(first <= wanted < first + count for first, _, count in ranges):
        return wanted
    first, _, count = max(ranges, key=lambda entry: entry[2])  # root of a container
    return first + count - 1 - os.getpid() % (count // 2) if count > 1 else None


def enter_namespaces() -> int | None:
    """New namespaces for this process and, for processes, its children. The user to become, None inside a user
    namespace of its own."""
    user = _own_user()
    real, group = os.geteuid(), os.getegid()
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP
    if user is None:
        flags |= _NEWUSER
    _check(_LIBC.unshare(flags), "unshare(namespaces)")
    if user is None:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{INNER_USER} {real} 1"),
            ("gid_map", f"{INNER_USER} {group} 1"),
        ):
            try:
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            except OSError as error:
                raise WallError(f"writing {name}: {error.strerror}") from None
    return user


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    done = _LIBC.mount(
        source.encode(),
        target.encode(),
        kind and kind.encode(),
        ctypes.c_ulong(flags),
        options and options.encode(),
    )
    _check(done, f"mount {target}")


def _show(path: str, *, device: bool = False) -> int:
    """A copy of the mount at `path`, read only, not yet anywhere: its descriptor."""
    tree = _call(
        _OPEN_TREE, f"open_tree {path}", _HERE, path.encode(), _CLONE | _CLOEXEC | (0 if device else _RECURSIVE)
    )
    wanted = _RDONLY | _NOSUID | (_NOEXEC if device else _NODEV)
    attributes = (ctypes.c_uint64 * 4)(wanted, 0, 0, 0)
    flags = _EMPTY_PATH | (0 if device else _RECURSIVE)
    _call(_MOUNT_SETATTR, f"mount_setattr {path}", tree, b"", flags, attributes, ctypes.sizeof(attributes))
    return tree


def _hang(tree: int, target: str) -> None:
    _call(_MOVE_MOUNT, f"move_mount {target}", tree, b"", _HERE, target.encode(), _FROM_EMPTY_PATH)
    os.close(tree)


_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM = ("/usr", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1"}


def build_root(shown: list[tuple[str, str]], scratch_bytes: int, user: int | None) -> None:
    """A root of this process's own: the system's /usr, `shown` (source, place), /proc of its own processes, five
    devices, and one empty /tmp of `scratch_bytes`; all but /tmp and /dev/shm read only. The old root is gone after."""
    _mount("none", "/", None, _PRIVATE_ALL)
    wanted = [*((path, path) for path in _SYSTEM if os.path.exists(path)), *shown]
    links = {name: os.readlink(f"/{name}") for name in _LINKS if os.path.islink(f"/{name}")}
    wanted += [(f"/{name}", f"/{name}") for name in _LINKS if name not in links and os.path.isdir(f"/{name}")]
    trees = [(_show(source), place, os.path.isdir(source)) for source, place in wanted]
    trees += [(_show(f"/dev/{name}", device=True), f"/dev/{name}", False) for name in _DEVICES]
    root = "/tmp"  # any folder does: it is covered, here only
    _mount("root", root, "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m,nr_inodes=1000")
    os.chdir(root)
    for folder in ("proc", "dev", "dev/shm", "etc", "tmp", "old"):
        os.mkdir(folder)
    for tree, place, is_folder in trees:
        _make_place(root + place, is_folder)
        _hang(tree, root + place)
    for name, target in links.items():
        os.symlink(target, name)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"dev/{name}")
    with open("etc/passwd", "w", encoding="ascii") as file:
        file.write(f"sandbox:x:{INNER_USER if user is None else user}:{INNER_USER}::/tmp:/bin/sh\n")
    _hang_scratch(root, scratch_bytes)
    _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid")
    _call(_PIVOT_ROOT[syscalls.processor()], "pivot_root", root.encode(), f"{root}/old".encode())
    os.chdir("/")
    _check(_LIBC.umount2(b"/old", _DETACH), "umount old root")
    os.rmdir("/old")
    _mount("root", "/", None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/tmp")
    _check(_LIBC.sethostname(b"sandbox", 7), "sethostname")


def _make_place(place: str, is_folder: bool) -> None:
    os.makedirs(place if is_folder else os.path.dirname(place), exist_ok=True)
    if not is_folder:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def _hang_scratch(root: str, scratch_bytes: int) -> None:
    """One file system behind /tmp and /dev/shm, so that one limit holds for both."""
    scratch = f"{root}/old"
    _mount("scratch", scratch, "tmpfs", _NOSUID | _NODEV, f"mode=755,size={scratch_bytes},nr_inodes=20000")
    for folder, place in (("tmp", "tmp"), ("shm", "dev/shm")):
        os.mkdir(f"{scratch}/{folder}")
        os.chmod(f"{scratch}/{folder}", 0o1777)
        tree = _call(_OPEN_TREE, "open_tree scratch", _HERE, f"{scratch}/{folder}".encode(), _CLONE | _CLOEXEC)
        _hang(tree, f"{root}/{place}")
    _check(_LIBC.umount2(scratch.encode(), _DETACH), "umount scratch")


def _pair(kind: int, value: int) -> None:
    """Both limits of a kind, never above what holds already."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def limit(limits: dict[str, int], *, count_processes: bool) -> None:
    """What the kernel holds for each process: address space, CPU, file size, descriptors, no core, no locked memory.

    `count_processes`: whether this user's processes are counted apart from the rest of the machine's.
    """
    if limits["cpu_seconds"]:
        _pair(resource.RLIMIT_CPU, limits["cpu_seconds"] + 1)
    _pair(resource.RLIMIT_AS, limits["memory_bytes"] + _HEADROOM_BYTES)
    _pair(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _pair(resource.RLIMIT_NOFILE, 128)
    _pair(resource.RLIMIT_CORE, 0)
    _pair(resource.RLIMIT_MEMLOCK, 0)
    _pair(resource.RLIMIT_MSGQUEUE, 0)
    if count_processes:
        _pair(resource.RLIMIT_NPROC, limits["processes"])


def counts_processes(user: int | None) -> bool:
    """Whether RLIMIT_NPROC counts the sandbox's processes alone: as a user of its own, or since linux 5.14 in a user
    namespace. Elsewhere only the warden counts."""
    major, minor = os.uname().release.split(".")[:2]
    return user is not None or (int(major), int("".join(c for c in minor if c.isdigit()))) >= (5, 14)


def drop(user: int | None) -> None:
    """No rights from here on, in no way back: capabilities, groups, user, new privileges, system calls."""
    number = 0
    while _LIBC.prctl(_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) == 0:
        number += 1  # the first that the kernel does not know ends it
    _control(_CAP_AMBIENT, 4, "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call(_CAPSET[syscalls.processor()], "capset", header, none)
    filter_calls()


def filter_calls() -> None:
    """The filter of system calls, for this process and all that come of it."""
    _control(_SET_NO_NEW_PRIVS, 1, "prctl(PR_SET_NO_NEW_PRIVS)")
    code = syscalls.build(syscalls.processor())

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    program = Program(len(code) // 8, code)
    _check(_LIBC.prctl(_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")
