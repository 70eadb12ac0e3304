"""A model in memory: expand it, run it as its base, take the new blocks out again (torch)."""

from blockexpand.live.insertion import adopt, expand_live, insert_blocks, load
from blockexpand.live.parts import blocks_of
from blockexpand.live.state import freeze, new_blocks, plan_of, switched_off, tensors_on_disk, writers
from blockexpand.live.switches import bypass, detach, guard, switch, unguard
