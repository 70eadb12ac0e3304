"""The program's side: runs it as Python would, and in front of tests answers for its names until they are done.

In: one held value on descriptor 3 (`program`, `packages`, `served`); served, a pair of pipes on 4 and 5. Out: what the
program prints, its exit code, its answers. Nothing here knows the tests, and nothing it says is believed.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from blockexpand.sandbox.inside import codec

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from types import TracebackType
    from typing import Any

FILE = "program.py"


def read_payload() -> Any:
    """The value on descriptor 3, which is closed."""
    with os.fdopen(3, "rb") as file:
        payload = codec.load(file.read())
    sys.path += payload["packages"]
    sys.argv = [FILE]
    return payload


def remember(name: str, source: str) -> None:
    """Lines for tracebacks of a file that is not there."""
    import linecache

    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)


def main() -> None:
    """Runs the program; its exception becomes a traceback that begins in the program, and exit code 1."""
    payload = read_payload()
    source, served = payload["program"], payload["served"]

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        import traceback

        remember(FILE, source)
        while trace is not None and trace.tb_frame.f_code.co_filename != FILE:
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)

    sys.excepthook = show
    module = ModuleType("program" if served else "__main__")
    sys.modules[module.__name__] = module
    vars(module)["__builtins__"] = sys.modules["builtins"]
    exec(compile(source, FILE, "exec", dont_inherit=True), vars(module))
    if served:
        sys.stdout.flush()
        from blockexpand.sandbox.inside.remote import Peer

        peer = Peer((4, 5), strict=False)
        peer.names = lambda wanted: [[name, vars(module)[name]] for name in wanted if name in vars(module)]
        peer.serve()
