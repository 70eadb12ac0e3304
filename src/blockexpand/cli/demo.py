"""The verb demo: `learn` on the tiny base, the running Python's standard library as the data."""

from __future__ import annotations

from pathlib import Path

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.records.learn import say_outcome

_TOKENS = 24_000
"""As many as two rivals leave time for: three minutes on two cores, all in all."""


def demo(*, out: Path = Path("demo-out"), common: Shared = DEFAULTS) -> int:
    """`learn` on a small model that comes with us and the running Python's standard library, in minutes.

    Parameters
    ----------
    out
        The folder to write. The same command goes on with what is in it.
    """
    import blockexpand
    from blockexpand.data import TINY_BASE

    record = blockexpand.learn(TINY_BASE, "stdlib", tokens=_TOKENS, out=out, against=("full", "lora"))
    show(common, record, "\n".join(say_outcome(record)))
    return DONE if record.passed else FAILED
