"""The verb demo: the whole story on the tiny base."""

from __future__ import annotations

from pathlib import Path

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show


def demo(
    *,
    out: Path = Path("demo-out"),
    full: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """The whole story on the tiny base: plan, expand, prove, prepare, train, instruct, compare, report.

    Parameters
    ----------
    out
        The folder for everything it makes.
    full
        Three seeds and three learning rates for each method, with intervals; takes about an hour.
    workers
        Runs at a time, in the comparison.
    overwrite
        Start over when the folder holds a finished demo, or one of other settings.
    """
    from blockexpand import demonstration

    story = demonstration.demo(out, full=full, workers=workers, overwrite=overwrite)
    show(common, story, story.text)
    return DONE
