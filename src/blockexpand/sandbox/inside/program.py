"""Runs a program as Python would and, where there are tests, these after it in the same process.

In: a held value on descriptor 3 (`program`, `packages`, `guarded`); with tests, pipes on 4 and 5. Out: what the
program prints, its exit code. The tests and a secret come on 4 once the program's own code has ended, which is told
on 5; the secret goes back on 5 after the tests' last line, and only then. Builtins and the modules that the tests use
are put back as they were before the program. docs/sandbox.md says what this holds off and what it does not.
"""

from __future__ import annotations

import marshal
import os
import sys
from types import CodeType, ModuleType

from blockexpand.sandbox.inside import frames

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from collections.abc import Callable
    from typing import Any, NoReturn

FILE, TESTS = "program.py", "tests.py"
READY = b"r"


def read_payload() -> Any:
    """The value on descriptor 3, which is closed."""
    with os.fdopen(3, "rb") as file:
        payload = marshal.loads(file.read())
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
    source, guarded = payload["program"], payload["guarded"]

    def show(kind: Any, error: BaseException, trace: Any) -> None:
        remember(FILE, source)
        _print(kind, error, trace)

    sys.excepthook = show
    module = ModuleType("__main__" if guarded is None else "program")
    sys.modules[module.__name__] = module
    space = vars(module)
    space["__builtins__"] = sys.modules["builtins"]
    test = None if guarded is None else _prepared(guarded)
    exec(compile(source, FILE, "exec", dont_inherit=True), space)
    if test is not None:
        test(space)


def _print(kind: Any, error: BaseException, trace: Any) -> None:
    import traceback

    while trace is not None and trace.tb_frame.f_code.co_filename not in (FILE, TESTS):
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def _prepared(guarded: list[str]) -> Callable[[dict[str, Any]], NoReturn]:
    """What runs the tests, made before the program runs: all that it uses is taken aside here."""
    kept = []
    modules = {}
    for name in ("builtins", "os", "sys", "marshal", __name__, frames.__name__, *guarded):
        try:
            __import__(name)
        except Exception:  # the tests will say so themselves
            continue
        modules[name] = sys.modules[name]
        kept.append((vars(modules[name]), dict(vars(modules[name]))))
    known, builtin = sys.modules, set(vars(modules["builtins"]))
    streams = [stream.flush for stream in (sys.stdout, sys.stderr)]

    def run(space: dict[str, Any]) -> NoReturn:
        for names, values in kept:
            names.clear()
            names.update(values)
        known.update(modules)
        sys.settrace(None)
        sys.setprofile(None)
        os.write(5, READY)
        tests, secret = marshal.loads(frames.receive(4))
        try:
            code = compile(tests, TESTS, "exec", dont_inherit=True)
            exec(code, _names_for(code, space, modules, builtin))
        except BaseException as error:  # whatever tests raise, they have failed
            remember(TESTS, tests)
            _print(type(error), error, error.__traceback__)
            os._exit(1)
        for flush in streams:
            flush()
        os.write(5, secret)
        os._exit(0)

    return run


def _names_for(code: CodeType, space: dict[str, Any], modules: dict[str, Any], builtin: set[str]) -> dict[str, Any]:
    """The program's names, without those by which it would answer for builtins and for the tests' modules.

    Where the tests use nothing else of it, these are what they mean: a task may ask for a function named `sum`.
    """
    own = [name for name in _used(code) if name in space and not name.startswith("__")]
    shadowing = [name for name in own if name in builtin or name in modules]
    hidden = set() if len(own) == len(shadowing) else {name for name in space if name in builtin}
    names = {name: value for name, value in space.items() if name not in hidden and not name.startswith("__")}
    names.update((name, modules[name]) for name in modules if name in names)
    return {"__name__": "tests", "__builtins__": modules["builtins"], **names}


def _used(code: CodeType) -> set[str]:
    """Every global name in the code and in what is defined in it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _used(constant)
    return found
