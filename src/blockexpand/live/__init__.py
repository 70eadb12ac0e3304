"""A model in memory: expand it, run it as its base, take the new blocks out again (torch)."""

from blockexpand.live.bypassing import bypass, detach
from blockexpand.live.inserting import adopt, expand_live, load
from blockexpand.live.state import freeze, new_blocks, plan_of, tensors_on_disk, writers

__all__ = [
    "expand_live",
    "adopt",
    "load",
    "bypass",
    "detach",
    "freeze",
    "new_blocks",
    "plan_of",
    "writers",
    "tensors_on_disk",
]
