"""Families that have no file: what they are is found by structure, on a small model (torch, transformers)."""

from blockexpand.families.discovering.building import effective
from blockexpand.families.discovering.finding import discover, small_model
from blockexpand.families.discovering.stacking import find_stack, misplaced

__all__ = ["discover", "misplaced", "effective", "find_stack", "small_model"]
