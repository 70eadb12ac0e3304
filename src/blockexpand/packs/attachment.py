"""`pack attach` on disk: a base and packs become a plain deeper checkpoint.

In: a base checkpoint and packs for exactly that base. Out: the folder that `expand` and training gave, byte for byte
when it is one pack stored without loss; of several packs, all their blocks by the stacking rule (fitting.py).
Refused: what does not belong together. Nothing half-done is ever visible. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import (
    Checkpoint,
    Place,
    TensorEntry,
    copy_files,
    copy_tensors,
    lay_out,
    open_checkpoint,
    other_files,
    read_header,
    refuse_not_finite,
    skeleton_of,
    write_config,
    write_weights,
)
from blockexpand.errors import ExpansionError, PackError
from blockexpand.expansion import Combined, combine
from blockexpand.expansion.expander import check_apart, check_fit
from blockexpand.expansion.expander import tensors_of as planned_tensors
from blockexpand.families import Family, family_for, with_entries
from blockexpand.packs.compatibility import check_base, check_digests, in_order
from blockexpand.packs.pack import Pack
from blockexpand.packs.record import tensors_of
from blockexpand.packs.weights import changed, decoded, starts_of
from blockexpand.records import to_plain, write_record
from blockexpand.records.expansion import AttachedPack, ExpansionRecord, FileText
from blockexpand.staging import RECORD_NAME, check_output, staged_folder


def attach_on_disk(
    base: str | Path | Checkpoint, packs: Sequence[Pack | str | Path], out: str | Path, *, overwrite: bool = False
) -> ExpansionRecord:
    """Write the base with the packs' blocks to `out`.

    Raises:
        PackError: a pack does not belong to this base, or its bytes are not those it names.
        CheckpointError, PlanError, StagingError: the base cannot be read or hold them, or the output not written.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    target, ordered = Path(out), in_order(packs)
    check_apart(checkpoint.folder, target)
    check_output(target, overwrite)
    combined = combined_for(ordered, checkpoint)
    with staged_folder(target, overwrite) as staged:
        return write_attached(checkpoint, (ordered, combined), staged, skeleton_of(checkpoint))


def write_attached(
    checkpoint: Checkpoint,
    packs: tuple[Sequence[Pack], Combined],
    staged: Path,
    skeleton: tuple[FileText, ...],
    copied: Mapping[str, str] | None = None,
) -> ExpansionRecord:
    """Write everything into an existing folder, the record last; `packs` are in order, with their plans as one.

    `copied` are the other files that come along, where they are not simply those of the base's folder: their names, and
    where they are.

    Raises:
        PackError, CheckpointError: the bytes of the base or a pack are not those they should be.
    """
    ordered, combined = packs
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    files = other_files(checkpoint)
    kept, added = planned_tensors(family, checkpoint, combined.plan)
    others = {name: name for name in files.copied} if copied is None else copied
    copy_files(checkpoint, others, staged)
    write_config(staged, with_entries(checkpoint.config, combined.plan.config_changes))
    layout = lay_out(checkpoint, kept, added)
    found = write_weights(checkpoint, layout, staged, digest=True, holes=[tensor.name for tensor in added])
    refuse_not_finite(checkpoint, found)
    digests = {name: result.digest for name, result in sorted(found.items())}
    held = {name: entry for file in layout for name, entry in read_header(staged / file.name).tensors.items()}
    for pack, ids in zip(ordered, combined.ids, strict=True):
        check_digests(pack, digests, checkpoint.source)
        _fill(pack, checkpoint, _places(pack, combined, ids, family, held), staged)
    record = ExpansionRecord(
        blockexpand_version=_version(),
        plan=combined.plan,
        base_digests=digests,
        files_copied=tuple(others),
        files_left_out=files.left_out,
        training=_training(ordered),
        base_files=skeleton,
        packs=tuple(described(pack, ids) for pack, ids in zip(ordered, combined.ids, strict=True)),
    )
    write_record(staged / RECORD_NAME, record)
    return record


def combined_for(packs: Sequence[Pack], base: Checkpoint) -> Combined:
    """The packs' plans as one, once each fits this base.

    Raises:
        PackError: one does not.
        PlanError: the base's config cannot state the stack.
    """
    for pack in packs:
        check_base(pack, base)
        try:
            check_fit(pack.record.plan, base)
        except ExpansionError as error:
            raise PackError(f"the pack {pack.folder} was changed by hand: {error}") from None
    return combine(base, [pack.record.plan for pack in packs])


def described(pack: Pack, ids: dict[str, str]) -> AttachedPack:
    """What the folder's record keeps of a pack."""
    record = pack.record
    about: dict[str, Any] = to_plain(
        {"training": record.training, "evaluation": record.evaluation, "card": record.card}
        | ({"scaled": record.scaled} if record.scaled else {})
    )
    return AttachedPack(name=record.name, fingerprint=record.fingerprint, plan=record.plan, blocks=ids, about=about)


def _training(packs: Sequence[Pack]) -> dict[str, Any] | None:
    """That the blocks were trained, if any was."""
    trained = {pack.name: pack.record.training for pack in packs if pack.record.training is not None}
    return {"packs": trained} if trained else None


def _version() -> str:
    from blockexpand import __version__

    return __version__


def _places(
    pack: Pack, combined: Combined, ids: dict[str, str], family: Family, held: dict[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """Where each of the pack's tensors goes."""
    positions = {block.id: block.position for block in combined.plan.new_blocks}
    return {
        name: held[family.name_of(positions[ids[block.id]], tensor.tail)]
        for name, block, tensor in tensors_of(pack.record.plan)
    }


def _fill(pack: Pack, base: Checkpoint, targets: dict[str, TensorEntry], staged: Path) -> None:
    """Write the pack's tensors to their places, and refuse bytes that are not those that its record names."""
    if pack.record.encoding == "plain":
        places: dict[TensorEntry, list[Place]] = {}
        for name, target in targets.items():
            places.setdefault(pack.stored[name], []).append(Place(file=target.file, start=target.start))
        for name, result in copy_tensors(pack.as_checkpoint(), places, staged, digest=True).items():
            if result.digest != pack.record.block_digests[name]:
                raise changed(pack, name)
        return
    starts = starts_of(base, pack, donors_of(pack, base))
    for name, _, tensor in tensors_of(pack.record.plan):
        target = targets[name]
        with open(staged / target.file, "r+b", buffering=0) as stream:
            _write(stream.fileno(), target, decoded(pack, name, tensor, starts.get(name)))


def _write(handle: int, target: TensorEntry, pieces: Iterator[bytes]) -> None:
    at = target.start
    for piece in pieces:
        left = memoryview(piece)
        while left:
            done = os.pwrite(handle, left, at)
            left, at = left[done:], at + done
    assert at == target.end, f"{at - target.start:,} bytes for {target}"


def donors_of(pack: Pack, base: Checkpoint) -> dict[str, TensorEntry]:
    """For each of the pack's tensors, the base's that its donor has."""
    family = family_for(base.config, base.source, base.tensors)
    return {
        name: base.tensors[family.name_of(block.donor, tensor.tail)]
        for name, block, tensor in tensors_of(pack.record.plan)
    }
