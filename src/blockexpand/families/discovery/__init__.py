"""Families that have no file: what they are is found by structure, on a small model (torch, transformers)."""

from blockexpand.families.discovery.finder import discover, small_model
from blockexpand.families.discovery.layout import find_stack, misplaced
from blockexpand.families.discovery.trial_model import effective
