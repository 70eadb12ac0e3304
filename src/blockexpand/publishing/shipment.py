"""What would go up, and whether it is fit to: everything that can be known before anything is sent.

In: the folder of a pack, of a run, or one that `expand`, `train` or `pack attach` wrote; what is stated for its card;
results. Out: a `Shipment`: the files with their sizes, what stays here, what a person should know. Refused: any other
folder, no licence, tensors that are not those that the records name, links.

Only files that a record names go: weights and their index, config, records, the base's other files, and the card. A
README.md that came along from the base goes as README.base.md, and ours is made of the records; a pack's own card goes
as it is unless something is stated anew. Paths of this machine in `blockexpand.json` are cut to their last name.
Nothing in the folder is changed, and neither torch nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockexpand.checkpoint import CONFIG, Checkpoint, digest_tensors, refuse_not_finite
from blockexpand.digests import digest_json
from blockexpand.errors import PublishError, RecordError
from blockexpand.packs import Card, Pack, read_pack
from blockexpand.packs.base import new_names, old_names, open_expanded, run_of
from blockexpand.packs.card import CARD, Subject, card_text, states_licence
from blockexpand.packs.extraction import shareable, without_paths
from blockexpand.packs.pack import WEIGHTS
from blockexpand.publishing.figures import Records, checkpoint_figures, pack_figures
from blockexpand.records import dump_json, from_plain, read_json, with_format
from blockexpand.records.expansion import ExpansionRecord
from blockexpand.staging import PACK_NAME, RECORD_NAME

_BASE_CARD = "README.base.md"
_INDEX = "model.safetensors.index.json"
_SMALL_BYTES = 1_000_000
"""Cards and JSON files below this are looked into."""


@dataclass(frozen=True, kw_only=True)
class ShippedFile:
    """One file that goes."""

    name: str
    """Its path in the repository."""
    num_bytes: int
    source: Path | bytes
    """Where it is, or what is sent in its place."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Everything that goes, checked."""

    kind: Literal["pack", "checkpoint"]
    name: str
    files: tuple[ShippedFile, ...]
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


def prepare_shipment(
    folder: str | Path, card: Card | None = None, records: Records | None = None, repo: str = "ORG/NAME"
) -> Shipment:
    """Look at everything that would go, and make its card.

    Args:
        folder: a pack, a run folder, or one that `expand`, `train` or `pack attach` wrote.
        card: what is stated for the card; what is not stated is what the records have, or the base's own card.
        records: results for the card's table.
        repo: where it goes, for the lines that load it.

    Raises:
        PublishError: it is not fit to be given to others.
        PackError, CheckpointError, RecordError: its files are broken.
    """
    path = Path(folder)
    if (path / PACK_NAME).is_file():
        return _of_pack(read_pack(path), card or Card(), records, repo)
    expanded, record = open_expanded(path)
    return _of_checkpoint(expanded, record, card or Card(), records, repo)


def _of_pack(pack: Pack, stated: Card, records: Records | None, repo: str) -> Shipment:
    pack.check_blocks()
    figures = pack_figures(pack, records) if records else ()
    own = pack.folder / CARD
    card, record = _filled(stated, pack.record.card, Card(base_model=_hub_base(pack.record.plan.base.hub))), pack.record
    content: Path | bytes = own
    if stated != Card() or records is not None or not own.is_file():
        run = (record.training or {}).get("run")
        subject = Subject(
            kind="pack",
            name=pack.name,
            plan=record.plan,
            version=record.blockexpand_version,
            fingerprint=record.fingerprint,
            card=card,
            training=record.training,
            run=run if isinstance(run, dict) else None,
            scaled=record.scaled,
            figures=figures,
            repo=repo,
        )
        content = card_text(subject).encode()
    elif found := _stated_in(own):
        card = _filled(found, card)  # somebody may have put the licence into the file itself
    files = [_file(pack.folder, name) for name in (PACK_NAME, WEIGHTS)]
    checked = f"{len(pack.stored)} tensors held against their recorded digests"
    return _shipment(pack.folder, "pack", pack.name, [*files, _as_card(content)], card, checked)


def _of_checkpoint(
    expanded: Checkpoint, record: ExpansionRecord, stated: Card, records: Records | None, repo: str
) -> Shipment:
    folder = expanded.folder
    above = folder.absolute().parent
    run = run_of(above) if folder.name == "model" else None
    if run is not None and run.get("settings_digest") != (record.training or {}).get("settings_digest"):
        run = None
    of_base = CARD in record.files_copied and (folder / CARD).is_file()
    card = _filled(
        stated,
        Card(base_model=_hub_base(record.plan.base.hub)),
        (_stated_in(folder / CARD) if of_base else None) or Card(),
    )
    subject = Subject(
        kind="checkpoint",
        name=(above if run is not None else folder.absolute()).name,
        plan=record.plan,
        version=record.blockexpand_version,
        fingerprint=digest_json(
            {"base": record.base_digests, "blocks": [[b.id, b.donor] for b in record.plan.new_blocks]}
        ),
        card=card,
        training=record.training,
        run=without_paths(run),
        packs=tuple(pack.name for pack in record.packs),
        figures=checkpoint_figures(expanded, record, records) if records else (),
        base_card=_BASE_CARD if of_base else "",
        repo=repo,
    )
    checked = _check_tensors(expanded, record, subject)
    index = (_INDEX,) if expanded.sharded else ()
    names = [*record.files_copied, *expanded.shards, *index, CONFIG]
    files = [_file(folder, name) for name in names if name != CARD and _goes(folder, name)]
    if of_base:
        files.append(dataclasses.replace(_file(folder, CARD), name=_BASE_CARD))
    shared = dump_json(with_format(_shareable(record))).encode()
    files.append(ShippedFile(name=RECORD_NAME, num_bytes=len(shared), source=shared))
    written = (folder / CARD).is_file() and not of_base and stated == Card() and records is None
    content: Path | bytes = folder / CARD if written else card_text(subject).encode()
    if written and (found := _stated_in(folder / CARD)):
        card = _filled(found, card)
    return _shipment(folder, "checkpoint", subject.name, [*files, _as_card(content)], card, checked)


def _goes(folder: Path, name: str) -> bool:
    return (folder / name).is_file() and not any(part.startswith(".") for part in Path(name).parts)


def _file(folder: Path, name: str) -> ShippedFile:
    path = folder / name
    for part in (path, *path.parents[: name.count("/")]):
        if part.is_symlink():
            raise PublishError(
                f"{path} is a link; expected the file itself, since a link can lead anywhere; put the file there"
            )
    return ShippedFile(name=name, num_bytes=path.stat().st_size, source=path)


def _as_card(content: Path | bytes) -> ShippedFile:
    if isinstance(content, bytes):
        return ShippedFile(name=CARD, num_bytes=len(content), source=content)
    return _file(content.parent, CARD)


def _shipment(
    folder: Path, kind: Literal["pack", "checkpoint"], name: str, files: list[ShippedFile], card: Card, checked: str
) -> Shipment:
    if not states_licence(card):
        raise PublishError(
            f"no licence is stated for {folder}{' but other' if card.licence else ''}; expected one, so that others "
            "know what they may do; add --licence LICENCE (with --licence-name and --licence-link where it is other)"
        )
    sent = {file.source for file in files if isinstance(file.source, Path)} | {folder / RECORD_NAME}
    there = sorted(path for path in folder.rglob("*") if not path.is_dir() and path not in sent)
    if not isinstance(next(file.source for file in files if file.name == CARD), Path):
        there = [path for path in there if path != folder / CARD]
    notes = [note for file in files for note in _path_notes(file)]
    notes += [] if card.base_model else ["the card names no base on the hub; --base-model ORG/NAME does"]
    return Shipment(
        kind=kind,
        name=name,
        files=tuple(sorted(files, key=lambda file: file.name)),
        stays=tuple(str(path.relative_to(folder)) for path in there),
        checked=checked,
        notes=(*notes, f"licence: {card.licence_name or card.licence}"),
    )


# --- what is stated -----------------------------------------------------------------------------------


def _filled(*cards: Card) -> Card:
    """For each field the first card that states it; a licence comes with its name and link."""
    names = [field.name for field in dataclasses.fields(Card)]
    found = {name: next(filter(None, (getattr(one, name) for one in cards)), getattr(cards[0], name)) for name in names}
    licensed = next((one for one in cards if one.licence), cards[0])
    link = {"licence_name": licensed.licence_name, "licence_link": licensed.licence_link}
    return dataclasses.replace(cards[0], **found | link)


def _hub_base(hub: str | None) -> str | None:
    """The base's name on the hub, where the plan was made from there."""
    return (hub or "").partition("@")[0] or None


def _stated_in(path: Path) -> Card | None:
    """The licence, languages and base that a card's metadata states, anybody's; None where they cannot be read."""
    from huggingface_hub import ModelCard

    try:
        if path.stat().st_size > _SMALL_BYTES:
            return None
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
        language = data.get("language") or []
        plain = {
            "licence": data.get("license"),
            "licence_name": data.get("license_name"),
            "licence_link": data.get("license_link"),
            "languages": [language] if isinstance(language, str) else language,
        }
        return from_plain(Card, plain)
    except Exception:  # the file may be anybody's, and yaml and huggingface_hub raise many kinds
        return None


# --- what is checked ----------------------------------------------------------------------------------


def _check_tensors(expanded: Checkpoint, record: ExpansionRecord, subject: Subject) -> str:
    """Old blocks are the base's, and nothing is NaN; in words."""
    found = digest_tensors(expanded)
    new_names(expanded, record.plan)
    refuse_not_finite(expanded, found)
    if subject.other_arms:
        return f"{len(found)} tensors, all finite; the base is not inside any more, so there is nothing to hold against"
    held = {old: new for new, old in old_names(expanded, record.plan).items()}
    for name, expected in sorted((record.base_digests or {}).items()):
        got = found[held[name]].digest if name in held else "missing"
        if got != expected:
            raise PublishError(
                f"{expanded.folder}: the base's {name!r} is {got[:23]}..., recorded {expected[:23]}...; expected old "
                "blocks as the record has them; a file was changed or damaged: make the folder again"
            )
    recorded = len(record.base_digests or {})
    return f"{len(found)} tensors, all finite; {recorded} of them held against the base's recorded digests"


def _shareable(record: ExpansionRecord) -> ExpansionRecord:
    """The record without paths of this machine."""
    plan, proof = shareable(record.plan), record.proof
    if proof is not None and proof.plan_digest == digest_json(with_format(record.plan)):
        proof = dataclasses.replace(proof, plan_digest=digest_json(with_format(plan)))
    packs = tuple(
        dataclasses.replace(pack, plan=shareable(pack.plan), about=without_paths(pack.about)) for pack in record.packs
    )
    training: Any = without_paths(record.training)
    return dataclasses.replace(record, plan=plan, proof=proof, training=training, packs=packs)


def _path_notes(file: ShippedFile) -> list[str]:
    """Paths of this machine in a JSON file that is sent as it is."""
    if not (isinstance(file.source, Path) and file.name.endswith(".json") and file.num_bytes <= _SMALL_BYTES):
        return []
    try:
        found = _paths(read_json(file.source, constants=True))
    except RecordError:
        return []
    return [f"{file.name} names a path of this machine: {value!r}" for value in found]


def _paths(data: Any) -> list[str]:
    """Every text in a JSON value that begins like a path and is one here, or is in somebody's home."""
    if isinstance(data, dict | list):
        return [path for item in (data.values() if isinstance(data, dict) else data) for path in _paths(item)]
    if isinstance(data, str) and data.startswith(("/", "~")) and len(data) < 4096 and "\n" not in data:
        in_home = data.startswith(("/home/", "/Users/", "~/"))
        return [data] if in_home or (len(Path(data).parts) > 2 and os.path.exists(data)) else []
    return []
