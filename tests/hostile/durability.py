"""Whether a power cut could show an output that is not whole: what was flushed when, read off a trace.

In: the calls of a run in their order, and the name under which the output appears. Out: what is wrong with the order.
A file's bytes are safe once it was flushed after its last change; a name is, once its folder was flushed after it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tracer import COUNT, Call

_CHANGES = {*COUNT, "writev", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate", "ioctl", "mmap", "fchmod"}
_MAKES = {"open", "openat", "creat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"}
_REMOVES = {"unlink", "unlinkat", "rmdir"}


def complaints(calls: Sequence[Call], output: str, place: str) -> list[str]:
    """What a power cut could spoil in the folder `place`, which was there before: nothing, if the order is right."""
    unsafe: set[str] = set()
    shown, wrong = False, []
    for call in calls:
        path = call.paths[-1]
        if call.name in _CHANGES:
            unsafe.add(path)
        elif call.name in _MAKES:
            unsafe |= {path, os.path.dirname(path)}
        elif call.name in ("fsync", "fdatasync"):
            unsafe.discard(path)
        elif call.name in ("rename", "renameat", "renameat2", "exchange"):
            source = call.paths[0]
            if path == output:
                shown = True
                wrong += [f"{p} was not flushed before it got its name" for p in sorted(_below(unsafe, source))]
            unsafe = {_renamed(p, source, path, call.name == "exchange") for p in unsafe}
            unsafe |= {os.path.dirname(source), os.path.dirname(path)}
        elif call.name in _REMOVES:
            if shown and os.path.dirname(output) in unsafe and not path.startswith(output):
                wrong.append(f"{path} was removed before the new name was flushed")
                shown = False
            unsafe -= _below(unsafe, path)
    above = [p for p in _below(unsafe, place) if output.startswith(p + "/")]
    return wrong + [f"{p} was never flushed" for p in sorted({*_below(unsafe, output), *above})]


def _below(paths: set[str], folder: str) -> set[str]:
    return {p for p in paths if p == folder or p.startswith(folder + "/")}


def _renamed(path: str, source: str, target: str, exchanged: bool) -> str:
    for old, new in ((source, target), (target, source)) if exchanged else ((source, target),):
        if path == old or path.startswith(old + "/"):
            return new + path[len(old) :]
    return path
