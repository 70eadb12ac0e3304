"""What would go up, and whether it is fit to: everything that can be known before anything is sent.

In: what is to be published, and perhaps the base of a pack. Out: a `Shipment`: the files with their sizes, what stays
here and why, what a person should know. Refused: no card of ours, a card of other blocks or of an earlier state, no
licence, tensors that are not those that the records name, links, a base where none is needed.

Only files that a record names go: weights and their index, config, records, the base's other files, the card. Paths of
this machine in `blockexpand.json` are cut to their last name; nothing else is changed.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import CONFIG, Checkpoint, digest_tensors, open_checkpoint, refuse_not_finite
from blockexpand.digests import digest_json
from blockexpand.errors import PublishError, RecordError
from blockexpand.expansion import CARD, read_mark
from blockexpand.packs import Pack
from blockexpand.packs.base import new_names, old_names
from blockexpand.packs.blocks_check import check_blocks
from blockexpand.packs.extraction import shareable, without_paths
from blockexpand.packs.pack import WEIGHTS
from blockexpand.publishing.statements import OTHER, metadata_of
from blockexpand.publishing.subject import Published
from blockexpand.records import dump_json, read_json, with_format
from blockexpand.records.expansion import ExpansionRecord
from blockexpand.staging import PACK_NAME, RECORD_NAME

_INDEX = "model.safetensors.index.json"
_SMALL_BYTES = 1_000_000
"""JSON files below this are looked through for paths of this machine."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One file that goes."""

    name: str
    """Its path in the repository."""
    num_bytes: int
    content: bytes | None = None
    """What is sent in place of the file's own bytes; None: those."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Everything that goes, checked."""

    folder: Path
    kind: str
    name: str
    files: tuple[Shipped, ...]
    """By name."""
    stays: tuple[str, ...]
    """Files of the folder that do not go."""
    checked: str
    """What was held against what."""
    notes: tuple[str, ...]
    """What a person should know."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)


def check_shipment(published: Published, base: Checkpoint | None = None) -> Shipment:
    """Look at everything that would go; of a pack stored as differences to its base, all of it only with the base.

    Raises:
        PublishError: it is not fit to be given to others.
        PackError, CheckpointError: its files are broken.
    """
    licence = _check_card(published)
    if base is not None and (published.pack is None or published.pack.record.encoding != "delta"):
        what = f"a pack stored as {published.pack.record.encoding}" if published.pack else "a checkpoint"
        raise PublishError(
            f"the base {base.source} is for a pack stored as delta, and {published.folder} is {what}, which is checked "
            "without; expected no --base; leave it out"
        )
    wanted, checked = _of_pack(published.pack, base) if published.pack else _of_checkpoint(published)
    there = sorted(str(path.relative_to(published.folder)) for path in published.folder.rglob("*") if not path.is_dir())
    going = [name for name in there if name in wanted and not _is_hidden(name)]
    for name in going:
        if any(
            part.is_symlink()
            for part in (published.folder / name, *(published.folder / name).parents[: name.count("/")])
        ):
            raise PublishError(
                f"{published.folder / name} is a link; expected the file itself, since a link can lead anywhere; put "
                "the file there"
            )
    files = tuple(_shipped(published, name) for name in going)
    return Shipment(
        folder=published.folder,
        kind=published.kind,
        name=published.name,
        files=files,
        stays=tuple(name for name in there if name not in going),
        checked=checked,
        notes=(*_notes(published, going), f"licence: {licence}"),
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _check_card(published: Published) -> str:
    """The licence that the card states."""
    path = published.folder / CARD
    again = f"write it with `blockexpand card {published.folder} --licence LICENCE`"
    mark = read_mark(path)
    if mark is None:
        found = "a README.md that is no card of ours (the base's own, it may be)" if path.is_file() else "no README.md"
        raise PublishError(f"{published.folder} has {found}; expected a model card; {again}")
    if (mark.blocks, mark.state) != (published.blocks, published.state):
        raise PublishError(
            f"{path} is the card of other blocks, or of these before they were trained ({mark.blocks[:23]}...); "
            f"expected the card of what is here ({published.blocks[:23]}...); {again}"
        )
    data = metadata_of(path)
    licence = data.get("license")
    named = data.get("license_name") and data.get("license_link")
    if not licence or (licence == OTHER and not named):
        stated = f"the licence {licence!r} without its name and link" if licence else "no licence"
        raise PublishError(f"{path} states {stated}; expected one, so that others know what they may do; {again}")
    return str(data.get("license_name") or licence)


def _of_pack(pack: Pack, base: Checkpoint | None) -> tuple[set[str], str]:
    """What may go of a pack, once its tensors are those that its record names."""
    wanted = {PACK_NAME, WEIGHTS, CARD}
    total, opened = len(pack.record.block_digests), check_blocks(pack, base)
    checked = f"{total - len(opened)} tensors held against their recorded digests"
    if opened:
        checked += (
            f"; {len(opened)} NOT checked, but opened to their sizes: they are stored as differences to the base, "
            "which was not given; --base BASE checks them"
        )
    return wanted, checked


def _of_checkpoint(published: Published) -> tuple[set[str], str]:
    """What may go of a checkpoint, once its old blocks are the base's and nothing in it is NaN."""
    record = published.record
    assert record is not None, "a checkpoint has a record"
    expanded = open_checkpoint(published.folder)
    mark = read_mark(published.folder / CARD)
    index = {_INDEX} if expanded.sharded else set()
    wanted = {*record.files_copied, *expanded.shards, *index, CONFIG, RECORD_NAME, CARD, mark.base_card if mark else ""}
    return wanted, _check_tensors(published, expanded, record)


def _check_tensors(published: Published, expanded: Checkpoint, record: ExpansionRecord) -> str:
    found = digest_tensors(expanded)
    new_names(expanded, record.plan)
    refuse_not_finite(expanded, found)
    if published.other_arms:
        return f"{len(found)} tensors, all finite; the base is not inside any more, so there is nothing to hold against"
    recorded = {n: d for n, d in (record.base_digests or {}).items() if d.startswith("blake3:")}
    held = {old: new for new, old in old_names(expanded, record.plan).items()}
    for name, expected in sorted(recorded.items()):
        got = found[held[name]].digest if name in held else "missing"
        if got != expected:
            raise PublishError(
                f"{published.folder}: the base's {name!r} is {got[:23]}..., recorded {expected[:23]}...; expected old "
                "blocks as the record has them; a file was changed or damaged: make the folder again"
            )
    return f"{len(found)} tensors, all finite; {len(recorded)} of them held against the base's recorded digests"


def _shipped(published: Published, name: str) -> Shipped:
    path = published.folder / name
    if name == RECORD_NAME and published.record is not None:
        content = dump_json(with_format(_shareable(published.record))).encode()
        if content != path.read_bytes():
            return Shipped(name=name, num_bytes=len(content), content=content)
    return Shipped(name=name, num_bytes=path.stat().st_size)


def _shareable(record: ExpansionRecord) -> ExpansionRecord:
    """The record without paths of this machine."""
    plan = shareable(record.plan)
    proof = record.proof
    if proof is not None and proof.plan_digest == digest_json(with_format(record.plan)):
        proof = dataclasses.replace(proof, plan_digest=digest_json(with_format(plan)))
    packs = tuple(
        dataclasses.replace(pack, plan=shareable(pack.plan), about=without_paths(pack.about)) for pack in record.packs
    )
    training: Any = without_paths(record.training)
    return dataclasses.replace(record, plan=plan, proof=proof, training=training, packs=packs)


def _notes(published: Published, going: list[str]) -> list[str]:
    """Paths of this machine in files that are sent as they are."""
    notes = []
    for name in going:
        path = published.folder / name
        if path.suffix != ".json" or name in (RECORD_NAME, PACK_NAME) or path.stat().st_size > _SMALL_BYTES:
            continue
        try:
            data = read_json(path, constants=True)
        except RecordError:
            continue
        notes += [f"{name} names a path of this machine: {value!r}" for value in _paths(data)]
    if not metadata_of(published.folder / CARD).get("base_model"):
        notes.append("the card names no base on the hub; `blockexpand card --base-model ORG/NAME` does")
    return notes


def _paths(data: Any) -> list[str]:
    """Every text in a JSON value that begins like a path and is one here, or is in somebody's home."""
    if isinstance(data, dict):
        return [path for item in data.values() for path in _paths(item)]
    if isinstance(data, list):
        return [path for item in data for path in _paths(item)]
    if isinstance(data, str) and data.startswith(("/", "~")) and len(data) < 4096 and "\n" not in data:
        in_home = data.startswith(("/home/", "/Users/", "~/"))
        return [data] if in_home or (len(Path(data).parts) > 2 and os.path.exists(data)) else []
    return []
