"""Where to grow, measured: general text through the base, block by block, into scores that a plan can follow.

Importing this room imports no torch: the measuring does, when a guided plan is asked for.
"""

from blockexpand.guidance.calibration import Calibration
from blockexpand.guidance.making import plan

__all__ = ["Calibration", "plan"]
