"""`pack detach` on disk: the base out of an expanded folder, its very files where the record has what they were.

In: a folder that `expand`, `train` or `attach` wrote. Out: the base, or the base with the other packs. Refused: old
blocks whose bytes are not those that were recorded, since that would not be the base.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint import (
    Checkpoint,
    TensorDigest,
    copy_files,
    lay_out,
    open_checkpoint,
    other_files,
    write_config,
    write_skeleton,
    write_weights,
)
from blockexpand.errors import PackError, nearest
from blockexpand.expansion import without_card
from blockexpand.expansion.expander import check_apart
from blockexpand.packs.attachment import combined_for, write_attached
from blockexpand.packs.base import base_within
from blockexpand.packs.compatibility import in_order
from blockexpand.packs.extraction import extract
from blockexpand.records.expansion import ExpansionRecord, read_expansion
from blockexpand.staging import RECORD_NAME, check_output, staged_folder


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
    expanded, target = open_checkpoint(source), Path(out)
    record = read_expansion(expanded.folder)
    check_apart(expanded.folder, target)
    check_output(target)
    left = _left(record, names, str(source))
    base = base_within(expanded, record)
    if left:
        return _with_others(base, record, target, left)
    there = without_card(expanded.folder, record.plan, other_files(expanded).copied)
    files = {name: there[name] for name in record.files_copied if name in there}
    with staged_folder(target) as staged:
        if record.base_files:
            found = write_skeleton(base, record.base_files, staged, record.plan.base.config_digest)
        else:
            write_config(staged, base.config)
            layout = lay_out(base, {name: name for name in base.tensors}, ())
            found = write_weights(base, layout, staged, digest=True)
        open_checkpoint(staged)  # what was recorded makes a whole checkpoint, or is refused here
        checked = _check(expanded, record.base_digests, found)
        copy_files(expanded, files, staged)
    return Detached(num_tensors=len(found), same_files=bool(record.base_files), checked=checked, packs_left=())


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
        copied = without_card(base.folder, record.plan, other_files(base).copied)
        write_attached(base, (packs, combined_for(packs, base)), staged, record.base_files, copied)
        shutil.rmtree(beside)
    return Detached(num_tensors=len(base.tensors), same_files=False, checked=True, packs_left=tuple(left))


def _check(expanded: Checkpoint, recorded: Mapping[str, str] | None, found: Mapping[str, TensorDigest]) -> bool:
    """Whether there was something to hold the base's bytes against; they are the same, or this raises."""
    expected = {name: digest for name, digest in (recorded or {}).items() if digest.startswith("blake3:")}
    for name, digest in expected.items():
        got = found[name].digest if name in found else "missing"
        if got != digest:
            raise PackError(
                f"{expanded.source}: {name!r} is not the base's any more ({got[:23]}..., recorded {digest[:23]}...); "
                f"expected old blocks as {RECORD_NAME} has them; get the base where it was published"
            )
    return bool(expected)
