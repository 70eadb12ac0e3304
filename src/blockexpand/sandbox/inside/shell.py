"""A Python that stays: runs one piece of code after the other in the same names, and shows the last expression's value.

In: a held value on descriptor 3 (`packages`), then frames on 4: code. Out: what is printed, and a frame on 5 for each
piece: its traceback, empty where it went well.
"""

from __future__ import annotations

import ast
import os
import sys
from types import ModuleType

from blockexpand.sandbox.inside import frames
from blockexpand.sandbox.inside.program import read_payload, remember

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from typing import Any


def main() -> None:
    """Serves until the other side has gone."""
    read_payload()
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    vars(module)["__builtins__"] = sys.modules["builtins"]
    number = 0
    while True:
        try:
            code = frames.receive(4).decode("utf-8", "surrogatepass")
        except EOFError:
            os._exit(0)
        except KeyboardInterrupt:
            continue  # it was meant for a piece that had just ended
        number += 1
        text = _run(code, f"<{number}>", vars(module))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue  # the code has closed or replaced it
        frames.send(5, text.encode("utf-8", "replace"))


def _run(source: str, name: str, space: dict[str, Any]) -> str:
    """Runs `source`; the traceback, empty when it went well."""
    try:
        remember(name, source)
        tree = ast.parse(source, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), space)
            if value is not None:
                print(repr(value))
    except BaseException as error:  # what code that is not ours raises is its answer
        import traceback

        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<"):
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace))
    return ""
