"""Where the files that ship with the demo are."""

from __future__ import annotations

from pathlib import Path

from blockexpand.data import TINY_BASE

BASE = TINY_BASE
"""The tiny base."""
RECIPE = Path(__file__).parent / "demo.yaml"
"""The demo's settings."""
