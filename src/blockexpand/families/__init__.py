"""Facts about model families, as data files, and the only place where tensor names are parsed."""

from blockexpand.families.entries import entry, prefixed, switched_on, with_entries
from blockexpand.families.family import BlockFacts, Family, is_fp8, matches_any, missing_number, tail_matches
from blockexpand.families.registry import common, family_for, known_families, refused_model_types
