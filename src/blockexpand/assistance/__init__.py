"""Help for whoever begins: what this machine can do, and a first recipe."""

from blockexpand.assistance.diagnosing import Diagnosis, diagnose
from blockexpand.assistance.drafting import Draft, draft_recipe

__all__ = ["Diagnosis", "Draft", "diagnose", "draft_recipe"]
