"""Facts about model families, as data files, and the only place where tensor names are parsed."""

from blockexpand.families.family import (
    BlockFacts,
    CopyFromDonor,
    Family,
    Place,
    Switched,
    Threshold,
    Tied,
    switched_on,
    tail_matches,
)
from blockexpand.families.known import family_for, known_families

__all__ = [
    "Family",
    "BlockFacts",
    "Switched",
    "Tied",
    "CopyFromDonor",
    "Threshold",
    "Place",
    "family_for",
    "known_families",
    "tail_matches",
    "switched_on",
]
