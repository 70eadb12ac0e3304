"""Files that ship with us: the tiny base (how it was made: studies/tiny_base)."""

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny_base"
"""The folder of a Llama of seven million parameters to try things on."""
