"""A plan and a base checkpoint become a deeper checkpoint, and the proof that it is the same model."""

from blockexpand.expansion.expanding import check_fit, expand
from blockexpand.expansion.verifying import verify

__all__ = ["expand", "verify", "check_fit"]
