"""The tiny base that ships with us, how it was made, and the demo that runs the whole job on it."""

from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.story import Story, demo

__all__ = ["BASE", "Story", "demo"]
