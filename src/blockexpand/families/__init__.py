"""Facts about model families, as data files, and the only place where tensor names are parsed."""

from blockexpand.families.blocks import BlockFacts, Choice, Switched, matches_any, missing_number, tail_matches
from blockexpand.families.configs import entry, prefixed, switched_on, with_entries
from blockexpand.families.family import Family, Place, Tied, is_fp8
from blockexpand.families.known import family_for, known_families, refused_model_types
from blockexpand.families.rules import (
    Between,
    CopyFromDonor,
    Every,
    First,
    Indices,
    Only,
    Pattern,
    PerLayer,
    Repeats,
    Threshold,
    WrittenOut,
)

__all__ = [
    "Family",
    "BlockFacts",
    "Choice",
    "Switched",
    "Tied",
    "Place",
    "Only",
    "PerLayer",
    "CopyFromDonor",
    "WrittenOut",
    "Threshold",
    "Pattern",
    "Indices",
    "First",
    "Every",
    "Between",
    "Repeats",
    "family_for",
    "known_families",
    "refused_model_types",
    "tail_matches",
    "matches_any",
    "missing_number",
    "switched_on",
    "is_fp8",
    "entry",
    "with_entries",
    "prefixed",
]
