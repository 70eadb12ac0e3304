"""Does a pack belong to this base, and do several packs go together?

In: opened packs and a base. Out: nothing, or the packs in the order in which they stand. Refused, each in its own
words: another family, other precisions, another depth or config, other tensors, changed numbers, two packs of one name.

**The stacking rule**: on each block of the base, packs stand in the order of their names, whatever the order in which
they were attached; the blocks of one pack in their own order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from blockexpand.checkpoint import Checkpoint
from blockexpand.digests import digest_json
from blockexpand.errors import PackError, PlanError
from blockexpand.expansion import Survey, survey
from blockexpand.packs.pack import Pack, opened
from blockexpand.staging import RECORD_NAME


def in_order(packs: Sequence[Pack | str | Path]) -> tuple[Pack, ...]:
    """The packs, opened, in the order in which they stand on one another.

    Raises:
        PackError: there are none, or two have one name.
    """
    if not packs:
        raise PackError("no pack given; expected one or more; name the folders that `pack extract` wrote")
    ordered = sorted((opened(pack) for pack in packs), key=lambda pack: pack.name)
    for one, other in pairwise(ordered):
        if one.name == other.name:
            same = one.record.fingerprint == other.record.fingerprint
            what = "are the same pack" if same else "are different packs of one name"
            advice = "give it once" if same else "change the name in one's pack.json"
            raise PackError(
                f"{one.folder} and {other.folder} {what} ({one.name!r}), which decides their order; expected different "
                f"names; {advice}"
            )
    return tuple(ordered)


def check_base(pack: Pack, base: Checkpoint) -> None:
    """Refuse a base that is not the pack's, as far as config and headers tell.

    Raises:
        PackError: the first fact that differs, with both values.
    """
    facts = _surveyed(pack, base)
    wanted = pack.record.plan.base
    found = tuple(sorted({t.dtype for kind in facts.kinds for t in kind.tensors}))
    # A pack with blocks of one kind alone may lack a precision that other blocks of the base have.
    dtypes = found if set(pack.record.dtypes) <= set(found) else pack.record.dtypes
    pairs = [
        ("for family", wanted.family, facts.family.name),
        ("of precision", ", ".join(dtypes), ", ".join(found)),
        ("for a base of so many blocks:", wanted.num_blocks, facts.depth),
        ("for a base with config.json", wanted.config_digest, digest_json(base.config)),
        ("for a base with tensors", wanted.layout_digest, facts.layout_digest),
    ]
    for what, expected, held in pairs:
        if expected != held:
            raise PackError(
                f"the pack {pack.name!r} is {what} {expected}, and {base.source} has {held}; expected the base it was "
                f"trained on, {_named(pack)}; attach it to that one"
            )


def _surveyed(pack: Pack, base: Checkpoint) -> Survey:
    try:
        facts = survey(base)
    except PlanError as error:
        raise PackError(f"the pack {pack.name!r} cannot be attached: {error}") from None
    if facts.depth > pack.record.plan.base.num_blocks and (base.folder / RECORD_NAME).is_file():
        raise PackError(
            f"{base.source} is expanded already, to {facts.depth} blocks; expected the base of {pack.name!r}, of "
            f"{pack.record.plan.base.num_blocks}; attach all packs to the base at once (`pack detach` gives it back)"
        )
    return facts


def check_digests(pack: Pack, digests: Mapping[str, str], where: str) -> None:
    """Refuse a base whose numbers are not those that the pack was trained on; `digests` may be of some tensors only.

    Raises:
        PackError: the first tensor that differs.
    """
    for name, digest in digests.items():
        expected = pack.record.base_digests.get(name)
        if expected != digest:
            raise PackError(
                f"{where}: the numbers of {name!r} are {digest[:23]}..., and the pack {pack.name!r} was trained on "
                f"{str(expected)[:23]}...; expected its base unchanged ({_named(pack)}); use it as it was published"
            )


def _named(pack: Pack) -> str:
    return pack.record.card.base_model or pack.record.plan.base.source
