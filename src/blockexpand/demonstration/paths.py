"""Where the files that ship with the demo are."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
BASE = _HERE / "base"
"""The tiny base that ships with us."""


def recipe_path(full: bool) -> Path:
    """The demo's recipe, short or full."""
    return _HERE / ("demo-full.yaml" if full else "demo.yaml")
