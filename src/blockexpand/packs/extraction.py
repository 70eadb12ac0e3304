"""`pack extract`: the new blocks of a run or an expanded folder as a pack.

In: a run folder, or a folder that `expand`, `train` or `attach` wrote. Out: `blocks.safetensors` and `pack.json`, the
record last. Refused: old blocks that are not the base's any more (then the new ones are not all that was trained),
blocks that hold NaN, a folder of several packs without a word which.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import (
    Checkpoint,
    TensorDigest,
    digest_tensors,
    open_checkpoint,
    read_header,
    refuse_not_finite,
)
from blockexpand.checkpoint.passes import new_hasher
from blockexpand.errors import PackError, nearest
from blockexpand.families import family_for
from blockexpand.packs.base import base_within, new_names, old_names
from blockexpand.packs.pack import WEIGHTS, Pack, read_pack
from blockexpand.packs.record import Card, Encoding, PackRecord, Scaled, dtypes_of, tensors_of
from blockexpand.packs.weights import Source, raw_pieces, write_encoded, write_plain
from blockexpand.records import from_plain, read_json, write_record
from blockexpand.records.expansion import AttachedPack, ExpansionRecord, read_expansion
from blockexpand.records.plan import Plan
from blockexpand.staging import PACK_NAME, RECORD_NAME, check_output, staged_folder

_RUN = "blockexpand.run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a pack says of itself that its blocks do not."""

    name: str | None = None
    """What it is called; None: as the output folder."""
    evaluation: Path | None = None
    """A `results.json` of `eval`, to carry along."""
    card: Card = dataclasses.field(default_factory=Card)
    """For the model card."""


def extract(
    source: str | Path,
    out: str | Path,
    about: About | None = None,
    *,
    encoding: Encoding = "plain",
    pack: str | None = None,
    overwrite: bool = False,
) -> Pack:
    """Write the new blocks of a run or an expanded folder to `out`.

    Args:
        source: a run folder, or a folder with a `blockexpand.json`.
        out: the folder to write; it appears whole or not at all.
        about: its name, what was measured, and what its card says.
        encoding: how the blocks are stored: "plain", "delta" (smaller, without loss) or "int8" (half of bfloat16, with
            loss).
        pack: which of the packs that are attached in the folder.
        overwrite: replace `out` if blockexpand made it.

    Raises:
        PackError: the folder's blocks cannot be told from its base.
        CheckpointError, StagingError: it cannot be read, or the output not written.
    """
    folder, run = _model_of(Path(source))
    target = Path(out)
    check_output(target, overwrite)
    expanded = open_checkpoint(folder)
    record = read_expansion(folder)
    base = base_within(expanded, record)
    attached = _attached(record, pack, str(source))
    plan = attached.plan if attached else record.plan
    digests = digest_tensors(expanded)
    base_digests = _check_old(expanded, record, digests)
    sources = _sources(expanded, base, record.plan, attached)
    refuse_not_finite(expanded, {name: digests[name] for name in new_names(expanded, record.plan).values()})
    by_entry = {expanded.tensors[name]: digest.digest for name, digest in digests.items()}
    facts = _facts(record, attached, run)
    made = PackRecord(
        blockexpand_version=record.blockexpand_version,
        name=_name(about, attached, target),
        family=plan.base.family,
        dtypes=dtypes_of(plan),
        plan=shareable(plan),
        encoding=encoding,
        block_digests={one.name: by_entry[one.entry] for one in sources},
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
        if encoding == "plain":
            write_plain(expanded, sources, staged)
        else:
            write_encoded(expanded, sources, staged, encoding)
        if encoding == "int8":
            made = _as_rounded(made, staged)
        write_record(staged / PACK_NAME, made)
    return read_pack(target)


def _model_of(source: Path) -> tuple[Path, dict[str, Any] | None]:
    """The folder with the weights, and the run's record when it is a run's."""
    path = source / RECORD_NAME
    found = read_json(path) if path.is_file() else None
    if isinstance(found, dict) and found.get("format") == _RUN:
        return source / "model", found
    return source, None


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
        # Folders of version 0.1 have SHA-256, which is not computed again: what trains does not touch old blocks.
        if digest.startswith("blake3:") and found.get(name) != digest:
            raise PackError(
                f"{expanded.source}: {name!r} is not the base's any more ({str(found.get(name))[:23]}..., recorded "
                f"{digest[:23]}...); expected only the new blocks to be trained; a pack cannot hold what else changed"
            )
    return dict(sorted(found.items()))


def _sources(expanded: Checkpoint, base: Checkpoint, plan: Plan, attached: AttachedPack | None) -> list[Source]:
    """Every tensor to store, under the id that its block has in its own pack."""
    names = new_names(expanded, plan)
    family = family_for(base.config, base.source, base.tensors)
    own = attached.plan if attached else plan
    found = []
    for name, block, tensor in tensors_of(own):
        held = attached.blocks[block.id] if attached else block.id
        donor = base.tensors[family.name_of(block.donor, tensor.tail)] if tensor.starts == "donor" else None
        entry = expanded.tensors[names[f"{held}.{tensor.tail}"]]
        found.append(Source(name=name, tensor=tensor, entry=entry, donor=donor))
    return found


def _name(about: About | None, attached: AttachedPack | None, out: Path) -> str:
    if about is not None and about.name is not None:
        return about.name
    return attached.name if attached else out.resolve().name


def _facts(record: ExpansionRecord, attached: AttachedPack | None, run: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of how the blocks were trained and what was measured."""
    if attached is not None:
        return {"training": None, "evaluation": None, "card": {}, "scaled": None, **attached.about}
    training = record.training
    measured = None
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
    base = dataclasses.replace(plan.base, source=without_paths(plan.base.source))
    return dataclasses.replace(plan, base=base)


def without_paths(value: Any) -> Any:
    """Paths of this machine as their last name: nobody else can follow them, and they tell where who lives."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    return value


def _as_rounded(record: PackRecord, staged: Path) -> PackRecord:
    """The record of rounded blocks: their digests are those of what readers will get."""
    digests = {}
    pack = Pack(folder=staged, record=record, stored=read_header(staged / WEIGHTS).tensors)
    for name, _, tensor in tensors_of(record.plan):
        algorithm, hasher = new_hasher()
        for piece in raw_pieces(pack, name, tensor):
            hasher.update(piece)
        digests[name] = f"{algorithm}:{hasher.hexdigest()}"
    return dataclasses.replace(record, block_digests=digests)
