"""Where the files that ship with the demo are."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
BASE = _HERE / "base"
"""The tiny base."""
RECIPE = _HERE / "demo.yaml"
"""The demo's settings."""
