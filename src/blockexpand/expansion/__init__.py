"""A base checkpoint becomes a plan, a deeper checkpoint, and the proof that it is the same model."""

from blockexpand.expansion.deeper_config import base_entries, rewrite, stack_entries
from blockexpand.expansion.diagram import draw
from blockexpand.expansion.expander import expand
from blockexpand.expansion.planner import Combined, check_fit, combine, combine_in_memory, plan
from blockexpand.expansion.proof import verify
from blockexpand.expansion.survey import Survey, survey
