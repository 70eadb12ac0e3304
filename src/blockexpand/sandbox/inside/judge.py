"""The tests' side: a process that the program cannot reach, with the tests, and the only way to the verdict.

In: the tests' source, the pipes to the program, the descriptor for the verdict. Out: one frame, `passed` or not with
the reason, written after the tests' last line and only then.

The tests see the program's names; of those, what Python itself or a known module calls by that name keeps its own
meaning, or a program could answer for `abs` and `math`. When nothing else of the program's is used, the tests must mean
the program's (a task may ask for a function named `sum`).
"""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType, ModuleType

from blockexpand.sandbox.inside import codec, values
from blockexpand.sandbox.inside.program import remember
from blockexpand.sandbox.inside.remote import FOREIGN, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from typing import Any, NoReturn

FILE = "tests.py"
_MOST_TEXT = 8000
"""Characters of a failure that are told: it fits a pipe, and a person's patience."""


def main(tests: str, channel: tuple[int, int], verdict: int) -> NoReturn:
    """Runs the tests and tells how they ended; does not return."""
    try:
        _test(tests, Peer(channel, strict=True))
        text = None
    except FOREIGN as error:
        text = _explain(tests, error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    codec.send(verdict, codec.dump({"passed": text is None, "text": text}))
    os._exit(0)


def _test(tests: str, peer: Peer) -> None:
    code = compile(tests, FILE, "exec", dont_inherit=True)
    used = sorted(name for name in _names(code) if not name.startswith("__"))
    offered = {name: value for name, value in peer.ask("names", used) if name in used}
    module = ModuleType("tests")
    sys.modules["tests"] = module
    space = vars(module)
    mine = {name for name in offered if name in vars(builtins) or name in values.KNOWN_MODULES}
    for name, value in offered.items():
        if name not in mine:
            space[name] = value
        elif name in values.KNOWN_MODULES:
            space[name] = values.decode("module", name)
        elif offered.keys() == mine:
            space[name] = value
    exec(code, space)


def _names(code: CodeType) -> set[str]:
    """Every global name in the code and in what is defined in it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


def _explain(tests: str, error: BaseException) -> str:
    if isinstance(error, codec.Gone | BrokenPipeError):
        return "the program ended before its tests did"
    import traceback

    remember(FILE, tests)
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != FILE:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))[-_MOST_TEXT:]
