"""Scores of programs: they run in the sandbox, never here.

In: a row of the data and the model's outputs. Out: the unbiased pass@k of Chen et al. (2021, equation 1) for each k of
1, 10 and 100 that there are outputs enough for. Refused: a row whose reference cannot be read.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from typing import Any

from blockexpand.errors import EvaluationError

_CPU_SECONDS, _WALL_SECONDS = 20, 60
"""Of one program. Processor time is what counts, so that a busy machine makes no wrong answers; the slowest reference
solution of MBPP takes 7 s of it (docs/log.md)."""
_KS = (1, 10, 100)  # Chen et al. 2021, table 1
_FENCED = re.compile(r"```[a-zA-Z0-9]*\n(.*?)(?:```|\Z)", re.DOTALL)
_AFTER_HASHES = re.compile(r"####\s*(-?[$0-9.,]+)")
_UNSAFE: ContextVar[bool] = ContextVar("blockexpand_unsafe_programs", default=False)


@contextlib.contextmanager
def unsafe_programs(allowed: bool) -> Generator[None]:
    """Inside the block programs may run without isolation, where there is no sandbox."""
    token = _UNSAFE.set(allowed)
    try:
        yield
    finally:
        _UNSAFE.reset(token)


def every_output(resps: Sequence[list[str]], docs: Sequence[dict]) -> list[list[str]]:
    """The harness's filter that keeps all outputs of a question."""
    del docs
    return [list(outputs) for outputs in resps]


def pass_at_k(num_outputs: int, num_right: int, k: int) -> float:
    """The chance that of k outputs drawn from these at least one is right."""
    return 1.0 - math.comb(num_outputs - num_right, k) / math.comb(num_outputs, k)


def scores(rights: Sequence[bool]) -> dict[str, float]:
    """pass@k of one question's outputs."""
    return {f"pass@{k}": pass_at_k(len(rights), sum(rights), k) for k in _KS if k <= len(rights)}


def humaneval(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Outputs go on from the prompt; whole programs, as chat models write them, stand in for it."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return scores([_passes(_humaneval_program(doc, output), tests) for output in results[0]])


def _humaneval_program(doc: dict[str, Any], output: str) -> str:
    written = code_of(output)
    if f"def {doc['entry_point']}(" not in written:
        return doc["prompt"] + written
    # The prompt's imports and helpers are the program's, too; its unfinished function is not.
    head = doc["prompt"].split(f"def {doc['entry_point']}(")[0]
    return head + written


def mbpp(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Outputs are whole programs."""
    tests = "\n".join([*(doc.get("test_imports") or ()), *doc["test_list"]]) + "\n"
    return scores([_passes(code_of(output), tests) for output in results[0]])


def gsm8k_pot(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Outputs define solution(), whose value is compared with the reference to a thousandth."""
    reference = reference_number(doc["answer"])
    tests = f"assert abs(float(solution()) - ({reference!r})) < 1e-3\n"
    return scores([_passes(code_of(output), tests) for output in results[0]])


def reference_number(answer: str) -> float:
    """The number after #### in a reference answer of GSM8K.

    Raises:
        EvaluationError: there is none.
    """
    found = _AFTER_HASHES.search(answer)
    try:
        if found is not None:
            return float(found.group(1).replace(",", "").replace("$", "").rstrip("."))
    except ValueError:
        pass
    raise EvaluationError(
        f"a reference answer has no number after ####: {answer[-80:]!r}; expected e.g. '#### 72' at its end; mend the "
        "data file"
    )


def code_of(output: str) -> str:
    """The program in an output: what stands in its first fence, or all of it."""
    found = _FENCED.search(output)
    return found.group(1) if found else output


def _passes(program: str, tests: str) -> bool:
    from blockexpand.sandbox import Limits, passes

    limits = Limits(wall_seconds=_WALL_SECONDS, cpu_seconds=_CPU_SECONDS)
    return passes(program, tests, limits, unsafe=_UNSAFE.get()).status == "ok"
