"""`pack extract`: the new blocks of a run or an expanded folder as a pack.

In: a run folder, or a folder that `expand`, `train` or `attach` wrote. Out: `blocks.safetensors`, the model card
`README.md` and `pack.json`, the record last. Refused: old blocks that are not the base's any more (then the new ones
are not all that was trained), blocks that hold NaN, a folder of several packs without a word which.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import (
    Checkpoint,
    Place,
    TensorDigest,
    TensorEntry,
    copy_tensors,
    digest_tensors,
    refuse_not_finite,
)
from blockexpand.errors import PackError, nearest
from blockexpand.packs.base import base_within, new_names, old_names, open_expanded, run_of
from blockexpand.packs.card import write_pack_card
from blockexpand.packs.pack import WEIGHTS, Pack, header_of, read_pack
from blockexpand.records import from_plain, read_json, write_record
from blockexpand.records.expansion import AttachedPack, ExpansionRecord
from blockexpand.records.pack import Card, PackRecord, Scaled, dtypes_of, tensors_of
from blockexpand.records.plan import Plan
from blockexpand.staging import PACK_NAME, check_output, staged_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a pack says of itself that its blocks do not."""

    name: str | None = None
    """What it is called; None: as the output folder."""
    evaluation: Path | None = None
    """The JSON of a measurement, to carry along unchecked."""
    card: Card = dataclasses.field(default_factory=Card)
    """For the model card."""


def extract(
    source: str | Path,
    out: str | Path,
    about: About | None = None,
    *,
    pack: str | None = None,
    overwrite: bool = False,
) -> Pack:
    """Write the new blocks of a run or an expanded folder to `out`.

    Args:
        source: a run folder, or a folder with a `blockexpand.json`.
        out: the folder to write; it appears whole or not at all, with its model card.
        about: its name, what was measured, and what its card says.
        pack: which of the packs that are attached in the folder.
        overwrite: replace `out` if blockexpand made it.

    Raises:
        PackError: the folder's blocks cannot be told from its base.
        CheckpointError, StagingError: it cannot be read, or the output not written.
    """
    target = Path(out)
    check_output(target, overwrite)
    expanded, record = open_expanded(source)
    base = base_within(expanded, record)
    attached = _attached(record, pack, str(source))
    plan = attached.plan if attached else record.plan
    digests = digest_tensors(expanded)
    base_digests = _check_old(expanded, record, digests)
    entries = _entries(expanded, record.plan, attached)
    refuse_not_finite(expanded, {name: digests[name] for name in new_names(expanded, record.plan).values()})
    by_entry = {expanded.tensors[name]: digest.digest for name, digest in digests.items()}
    run = run_of(source)
    facts = _facts(record, attached, run)
    made = PackRecord(
        blockexpand_version=record.blockexpand_version,
        name=_name(about, attached, target),
        family=plan.base.family,
        dtypes=dtypes_of(plan),
        plan=shareable(plan),
        block_digests={name: by_entry[entry] for name, entry in entries.items()},
        base_digests=base_digests,
        training=facts["training"],
        evaluation=_evaluation(about, facts),
        card=about.card if about else from_plain(Card, facts["card"]),
        scaled=from_plain(Scaled, facts["scaled"], "scaled") if facts["scaled"] else None,
    )
    if attached is not None and made.fingerprint != attached.fingerprint:  # they were trained since
        later = _facts(dataclasses.replace(record, training=made.training), None, run)
        made = dataclasses.replace(made, scaled=None, training=later["training"], evaluation=_evaluation(about, later))
    with staged_folder(target, overwrite) as staged:
        _write_blocks(base, entries, made, staged)
        write_pack_card(made, staged)
        write_record(staged / PACK_NAME, made)
    return read_pack(target)


def _attached(record: ExpansionRecord, name: str | None, source: str) -> AttachedPack | None:
    """The pack to take out of a folder of several; None for a folder that was expanded."""
    names = [pack.name for pack in record.packs]
    if name is None and len(names) < 2:
        return record.packs[0] if names else None
    if name is None:
        raise PackError(
            f"{source} holds the packs {', '.join(names)}; expected one to take out; name it with --pack {names[0]}"
        )
    if name not in names:
        held = nearest(name, names) if names else "it holds none, so leave --pack out"
        raise PackError(f"{source} has no pack {name!r}; expected one that was attached there; {held}")
    return record.packs[names.index(name)]


def _check_old(expanded: Checkpoint, record: ExpansionRecord, digests: dict[str, TensorDigest]) -> dict[str, str]:
    """The digests of the base's tensors by their names there, once they are those that were recorded."""
    found = {old: digests[new].digest for new, old in old_names(expanded, record.plan).items()}
    for name, digest in sorted((record.base_digests or {}).items()):
        if found.get(name) != digest:
            raise PackError(
                f"{expanded.source}: {name!r} is not the base's any more ({str(found.get(name))[:23]}..., recorded "
                f"{digest[:23]}...); expected only the new blocks to be trained; a pack cannot hold what else changed"
            )
    return dict(sorted(found.items()))


def _entries(expanded: Checkpoint, plan: Plan, attached: AttachedPack | None) -> dict[str, TensorEntry]:
    """Where every tensor to store is, by the id that its block has in its own pack, and its tail."""
    names = new_names(expanded, plan)
    found = {}
    for name, block, tensor in tensors_of(attached.plan if attached else plan):
        held = attached.blocks[block.id] if attached else block.id
        found[name] = expanded.tensors[names[f"{held}.{tensor.tail}"]]
    return found


def _write_blocks(expanded: Checkpoint, entries: dict[str, TensorEntry], record: PackRecord, staged: Path) -> None:
    """The weights file: a header and moved bytes."""
    total = sum(entry.num_bytes for entry in entries.values())
    rows = [(name, tensor.dtype, tensor.shape) for name, _, tensor in tensors_of(record.plan)]
    header = header_of(rows, total)
    with open(staged / WEIGHTS, "xb") as stream:
        stream.write(header)
        stream.truncate(len(header) + total)
    places: dict[TensorEntry, list[Place]] = {}
    at = len(header)
    for name, _, _ in rows:
        places.setdefault(entries[name], []).append(Place(file=WEIGHTS, start=at))
        at += entries[name].num_bytes
    copy_tensors(dataclasses.replace(expanded, tensors=entries), places, staged, digest=False)


def _name(about: About | None, attached: AttachedPack | None, out: Path) -> str:
    if about is not None and about.name is not None:
        return about.name
    return attached.name if attached else out.resolve().name


def _facts(record: ExpansionRecord, attached: AttachedPack | None, run: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of how the blocks were trained and what was measured."""
    if attached is not None:
        return {"training": None, "evaluation": None, "card": {}, "scaled": None, **attached.about}
    training, measured = record.training, None
    if run is not None:
        training = {**(training or {}), "run": without_paths({k: v for k, v in run.items() if k != "machine"})}
        measured = {"run": {"base": run.get("base"), "best": run.get("best")}}
    return {"training": training, "evaluation": measured, "card": {}, "scaled": None}


def _evaluation(about: About | None, facts: dict[str, Any]) -> dict[str, Any] | None:
    if about is None or about.evaluation is None:
        return facts["evaluation"]
    return {**(facts["evaluation"] or {}), "results": without_paths(read_json(about.evaluation))}


def shareable(plan: Plan) -> Plan:
    """The plan without paths of this machine."""
    return dataclasses.replace(plan, base=dataclasses.replace(plan.base, source=without_paths(plan.base.source)))


def without_paths(value: Any) -> Any:
    """Paths of this machine as their last name: nobody else can follow them, and they tell where who lives."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    return value
