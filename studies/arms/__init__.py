"""Reference arms of the studies, given to `compare` by their names: moe, parallel, upscaled."""

from studies.arms.moe import Moe
from studies.arms.parallel import Parallel
from studies.arms.upscaled import Upscaled

ARMS = {"moe": Moe, "parallel": Parallel, "upscaled": Upscaled}
"""What makes each from its options; to be imported in a process of its own, so that the package needs none of them."""
