"""Packs onto a base and off again, on disk: a plain deeper checkpoint, and the base's own files back.

In: a base checkpoint and packs for exactly that base; or a folder that `expand`, `train` or `attach` wrote. Out: the
folder that `expand` and training gave, byte for byte when it is one pack; of several packs, all their blocks by the
stacking rule (compatibility.py). Off again, the base, byte for byte where the record has what its files were, or the
base with the packs that stay. Refused: what does not belong together, and old blocks whose bytes are not those that
were recorded. Nothing half-done is ever visible. Neither torch nor transformers is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand import __version__
from blockexpand.checkpoint import (
    Checkpoint,
    Place,
    TensorDigest,
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
    write_skeleton,
    write_weights,
)
from blockexpand.errors import ExpansionError, PackError, nearest
from blockexpand.expansion import Combined, check_fit, combine
from blockexpand.expansion.expander import check_apart
from blockexpand.expansion.expander import tensors_of as planned_tensors
from blockexpand.families import family_for, with_entries
from blockexpand.packs.base import base_within, open_expanded
from blockexpand.packs.compatibility import check_base, check_digests, in_order
from blockexpand.packs.extraction import extract
from blockexpand.packs.pack import Pack
from blockexpand.records import to_plain, write_record
from blockexpand.records.expansion import AttachedPack, ExpansionRecord, FileText
from blockexpand.records.pack import tensors_of
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
        return _write(checkpoint, ordered, combined, staged, skeleton_of(checkpoint))


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


def _write(
    base: Checkpoint, packs: Sequence[Pack], combined: Combined, staged: Path, skeleton: tuple[FileText, ...]
) -> ExpansionRecord:
    """Write everything into an existing folder, the record last; `packs` are in order, with their plans as one."""
    family = family_for(base.config, base.source, base.tensors)
    files = other_files(base)
    kept, added = planned_tensors(family, base, combined.plan)
    copy_files(base, files.copied, staged)
    write_config(staged, with_entries(base.config, combined.plan.config_changes))
    layout = lay_out(base, kept, added)
    found = write_weights(base, layout, staged, digest=True, holes=[tensor.name for tensor in added])
    refuse_not_finite(base, found)
    digests = {name: result.digest for name, result in sorted(found.items())}
    held = {name: entry for file in layout for name, entry in read_header(staged / file.name).tensors.items()}
    positions = {block.id: block.position for block in combined.plan.new_blocks}
    for pack, ids in zip(packs, combined.ids, strict=True):
        check_digests(pack, digests, base.source)
        places = {
            name: held[family.name_of(positions[ids[block.id]], tensor.tail)]
            for name, block, tensor in tensors_of(pack.record.plan)
        }
        _write_blocks(pack, places, staged)
    trained = {pack.name: pack.record.training for pack in packs if pack.record.training is not None}
    record = ExpansionRecord(
        blockexpand_version=__version__,
        plan=combined.plan,
        base_digests=digests,
        files_copied=files.copied,
        files_left_out=files.left_out,
        training={"packs": trained} if trained else None,
        base_files=skeleton,
        packs=tuple(_described(pack, ids) for pack, ids in zip(packs, combined.ids, strict=True)),
    )
    write_record(staged / RECORD_NAME, record)
    return record


def _described(pack: Pack, ids: dict[str, str]) -> AttachedPack:
    """What the folder's record keeps of a pack."""
    record = pack.record
    about: dict[str, Any] = {"training": record.training, "evaluation": record.evaluation, "card": record.card}
    about |= {"scaled": record.scaled} if record.scaled else {}
    return AttachedPack(
        name=record.name, fingerprint=record.fingerprint, plan=record.plan, blocks=ids, about=to_plain(about)
    )


def _write_blocks(pack: Pack, targets: Mapping[str, TensorEntry], staged: Path) -> None:
    """Write the pack's tensors to their places, and refuse bytes that are not those that its record names."""
    places: dict[TensorEntry, list[Place]] = {}
    for name, target in targets.items():
        places.setdefault(pack.stored[name], []).append(Place(file=target.file, start=target.start))
    for name, result in copy_tensors(pack.as_checkpoint(), places, staged, digest=True).items():
        pack.check_digest(name, result.digest)


@dataclass(frozen=True, kw_only=True)
class Detached:
    """What came back."""

    num_tensors: int
    """Tensors of the base."""
    same_files: bool
    """Whether config and weights are the base's own files, byte for byte; otherwise the same tensors and entries of the
    config in files written anew, since the folder's record does not have the headers."""
    checked: bool
    """Whether each tensor's bytes were held against a recorded digest of the base."""
    packs_left: tuple[str, ...]
    """The packs whose blocks are still there."""


def detach_on_disk(source: str | Path, out: str | Path, names: Sequence[str] = ()) -> Detached:
    """Write the base inside `source` to `out`, or, with `names`, the base with all packs but those.

    Raises:
        PackError: the base's bytes are not there any more, or no pack has such a name.
        CheckpointError, StagingError: the folder cannot be read, or the output not written.
    """
    expanded, record = open_expanded(source)
    target = Path(out)
    check_apart(expanded.folder, target)
    check_output(target)
    left = _left(record, names, str(source))
    base = base_within(expanded, record)
    if left:
        return _with_others(base, record, target, left)
    there = other_files(expanded).copied
    with staged_folder(target) as staged:
        if record.base_files:
            found = write_skeleton(base, record.base_files, staged, record.plan.base.config_digest)
        else:
            write_config(staged, base.config)
            layout = lay_out(base, {name: name for name in base.tensors}, ())
            found = write_weights(base, layout, staged, digest=True)
        open_checkpoint(staged)  # what was recorded makes a whole checkpoint, or is refused here
        _check(expanded, record.base_digests or {}, found)
        written = {file.name for file in record.base_files}
        copy_files(expanded, [name for name in record.files_copied if name in there and name not in written], staged)
    return Detached(
        num_tensors=len(found),
        same_files=bool(record.base_files),
        checked=bool(record.base_digests),
        packs_left=(),
    )


def _left(record: ExpansionRecord, names: Sequence[str], source: str) -> tuple[str, ...]:
    """The packs that stay."""
    held = [pack.name for pack in record.packs]
    for name in names:
        if name not in held:
            hint = nearest(name, held) if held else "it holds none; leave the name out to get the base"
            raise PackError(f"{source} has no pack {name!r}; expected one that was attached there; {hint}")
    return tuple(name for name in held if names and name not in names)


def _with_others(base: Checkpoint, record: ExpansionRecord, target: Path, left: Sequence[str]) -> Detached:
    """The base with the packs that stay: they are taken out beside the output, and attached to the base again."""
    with staged_folder(target) as staged:
        beside = staged / ".packs"
        beside.mkdir()
        packs = in_order([extract(base.folder, beside / name, pack=name) for name in left])
        _write(base, packs, combined_for(packs, base), staged, record.base_files)
        shutil.rmtree(beside)
    return Detached(num_tensors=len(base.tensors), same_files=False, checked=True, packs_left=tuple(left))


def _check(expanded: Checkpoint, recorded: Mapping[str, str], found: Mapping[str, TensorDigest]) -> None:
    """Refuse bytes that are not those of the base, where there is something to hold them against."""
    for name, digest in recorded.items():
        got = found[name].digest if name in found else "missing"
        if got != digest:
            raise PackError(
                f"{expanded.source}: {name!r} is not the base's any more ({got[:23]}..., recorded {digest[:23]}...); "
                f"expected old blocks as {RECORD_NAME} has them; get the base where it was published"
            )


def attach(base: Any, packs: Pack | str | Path | Sequence[Pack | str | Path], out: str | Path | None = None) -> Any:
    """Put packs on a model in memory, in place, and return it; or, with `out`, on a checkpoint, and return its record.

    Raises:
        PackError: a pack does not belong to this base.
    """
    chosen = [packs] if isinstance(packs, Pack | str | Path) else list(packs)
    if isinstance(base, str | Path | Checkpoint):
        if out is None:
            raise PackError(
                f"no output for {base if not isinstance(base, Checkpoint) else base.source}; expected the folder to "
                "write; give `out`, or load the model and attach to that"
            )
        return attach_on_disk(base, chosen, out)
    from blockexpand.packs.in_memory import attach_to_model

    return attach_to_model(base, chosen)


def detach(model: Any, out: str | Path | None = None, names: Sequence[str] = ()) -> Any:
    """Take packs off a model in memory and return it; or, with `out`, off a folder, and return what came back.

    Raises:
        PackError: there is no such pack.
    """
    if isinstance(model, str | Path):
        if out is None:
            raise PackError(f"no output for the base inside {model}; expected the folder to write; give `out`")
        return detach_on_disk(model, out, names)
    from blockexpand.packs.in_memory import detach_from_model

    return detach_from_model(model, names)


def load_with_packs(
    base: str | Path | Checkpoint, packs: Sequence[Pack | str | Path], dtype: Any = None, device: str = "cpu"
) -> Any:
    """The base with these packs in memory, in eval mode; every tensor of both is checked by its digest as it is read.

    `dtype`: a `torch.dtype`; the checkpoint's own if not given. With no packs it is the base.

    Raises:
        PackError: a pack does not belong to this base.
        CheckpointError, LiveError: the base cannot be read or loaded.
    """
    from blockexpand.packs.in_memory import load_base_with_packs

    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    ordered = in_order(packs) if packs else ()
    if ordered:
        combined_for(ordered, checkpoint)
    return load_base_with_packs(checkpoint, ordered, dtype, device)


def load_attached(folder: str | Path, dtype: Any = None, device: str = "cpu") -> Any:
    """The model of a folder that `attach` wrote, each of its packs to be switched by name; as `load_with_packs`.

    Raises:
        PackError: no packs are recorded there.
    """
    _, record = open_expanded(folder)
    if not record.packs:
        raise PackError(
            f"{folder} was expanded, and holds no packs to switch; expected a folder that `pack attach` wrote; use "
            "blockexpand.load"
        )
    from blockexpand import live
    from blockexpand.packs.in_memory import adopt_attached

    model = live.load(folder, dtype, device)[0]
    adopt_attached(model, record.packs)
    return model
