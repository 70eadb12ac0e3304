"""`pack scale`: a pack whose blocks write a multiple of what another's write, as a pack of its own.

In: a pack, and a gain. Out: a pack stored in the same way: what writes to the residual stream times the gain, all else
the same bytes; its record says of which pack it was made. Refused: gains that are no scale, blocks that did not start
silent (then no tensor is known to be the last on its way), FP8 weights, numbers that the precision cannot hold.

Each way to the residual stream ends in writers (weights and biases, or behind a norm its gain), and what they give is
in proportion to them (tests/families/test_writers_alone.py tries each family); so for the same input each of a
block's branches writes the multiple. Numbers are multiplied in float32 (F64: in float64) and rounded once to their
precision: nothing is lost by a power of two, underflow aside. A gain that is stored as gain minus one, w, becomes
by (1 + w) - 1, which is rounded. Of int8 the scales of the rows are multiplied, and the 8 bits stay. Of delta, what
writes is the difference to zero, so the base is not needed. A piece of a tensor is held at a time; neither torch nor
transformers is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blockexpand import __version__
from blockexpand.checkpoint import num_bytes
from blockexpand.checkpoint.passes import count_not_finite, new_hasher
from blockexpand.errors import PackError
from blockexpand.packs.encoding import (
    PIECE_BYTES,
    SCALE,
    bytes_of,
    compressed,
    floats_of,
    is_rounded,
    piece_bytes,
    unrounded,
)
from blockexpand.packs.pack import Pack, read_pack
from blockexpand.packs.record import LEAST_GAIN, MOST_GAIN, PackRecord, Scaled, tensors_of
from blockexpand.packs.weights import Row, changed, decoded, pieces, weights_file
from blockexpand.progress import bar
from blockexpand.records import write_record
from blockexpand.records.plan import SILENT, BlockTensor, Plan
from blockexpand.staging import PACK_NAME, check_output, staged_folder
from blockexpand.units import FLOATS


def scale_on_disk(
    pack: Pack | str | Path, out: str | Path, by: float, *, name: str | None = None, overwrite: bool = False
) -> Pack:
    """Write the pack to `out` with what its blocks write times `by`.

    Args:
        pack: a folder, or an opened pack.
        out: the folder to write; it appears whole or not at all.
        by: the gain, 0.001 to 1000.
        name: what the new pack is called; as the pack is, if not given, so that it stands in its place.
        overwrite: replace `out` if blockexpand made it.

    Raises:
        PackError: the gain is no scale, this pack cannot be scaled, or its bytes are not those it names.
        RecordError: the name is none.
        StagingError: the output cannot be written.
    """
    source, target = pack if isinstance(pack, Pack) else read_pack(pack), Path(out)
    begun = scaled_record(source, by, name)
    check_beside(source, target)
    check_output(target, overwrite)
    with staged_folder(target, overwrite) as staged:
        write_scaled(source, begun, by, staged)
    return read_pack(target)


def check_beside(pack: Pack, out: Path) -> None:
    """Refuse an output that is the pack, or inside it, or around it, where replacing it would take the pack along.

    Raises:
        PackError: it is.
    """
    source, target = pack.folder.resolve(), out.resolve()
    where = "is" if target == source else "is inside" if source in target.parents else "contains"
    if where != "contains" or target in source.parents:
        raise PackError(f"the output {out} {where} the pack {pack.folder}; expected a folder beside it; choose another")


def check_gain(by: float, what: str) -> None:
    """Refuse what is no scale.

    Raises:
        PackError: with the value.
    """
    if not LEAST_GAIN <= by <= MOST_GAIN:
        raise PackError(
            f"cannot scale {what} by {by:g}; expected a number from {LEAST_GAIN:g} to {MOST_GAIN:,g}; to have the base "
            "alone, leave the pack out"
        )


def check_silent(plan: Plan, name: str) -> None:
    """Refuse blocks of which it is not known what writes to the residual stream.

    Raises:
        PackError: they did not start silent.
    """
    if plan.init != "identity":
        raise PackError(
            f"the blocks of {name!r} did not start silent (init {plan.init!r}), so none of their tensors is known to "
            "be the last before the residual stream; expected init 'identity'; scale another pack"
        )


def scaled_record(pack: Pack, by: float, name: str | None = None) -> PackRecord:
    """The record of the pack that is to be, still with the old digests, once it is known that it can be made.

    Raises:
        PackError: the gain is no scale, or the pack's blocks cannot be scaled.
        RecordError: the name is none.
    """
    record, before = pack.record, pack.record.scaled
    check_gain(by, f"the pack {pack.name!r}")
    if before:
        check_gain(by * before.by, f"the first pack of {pack.name!r}, which is scaled by {before.by:g} already,")
    check_silent(record.plan, pack.name)
    for tensor_name, _, tensor in tensors_of(record.plan):
        if tensor.starts in SILENT and tensor.dtype not in FLOATS:
            raise PackError(
                f"the pack {pack.name!r} has {tensor_name!r}, which writes to the residual stream, as {tensor.dtype}; "
                f"expected one of {', '.join(FLOATS)}; scale a pack for the base in such a precision"
            )
    scaled = Scaled(of=before.of, by=before.by * by) if before else Scaled(of=record.fingerprint, by=by)
    return dataclasses.replace(
        record, blockexpand_version=__version__, name=name or record.name, evaluation=None, scaled=scaled
    )


def write_scaled(pack: Pack, begun: PackRecord, by: float, staged: Path) -> PackRecord:
    """Write both files into an existing folder, the record last; `begun` is of `scaled_record`.

    What was measured is not carried along, since it is not true of these blocks; unless they are the very same (by 1,
    or blocks that never trained and write nothing). Blocks that are the first pack's again are not called scaled.

    Raises:
        PackError: the pack's bytes are not those it names, or the scaled ones are not finite.
    """
    digests = dict(pack.record.block_digests)
    total = sum(entry.num_bytes for entry in pack.stored.values())
    with weights_file(staged) as (stream, rows), bar(f"scale {pack.name}", total, "B") as progress:
        for name, _, tensor in tensors_of(pack.record.plan):
            at = stream.tell()
            if tensor.starts not in SILENT:
                rows += _copied(pack, name, tensor, stream)
            else:
                write = _rescaled if pack.record.encoding == "int8" and is_rounded(tensor) else _multiplied
                written, digests[name] = write(pack, (name, tensor), by, stream)
                rows += written
            progress.advance(stream.tell() - at)
    made = dataclasses.replace(begun, block_digests=digests)
    if made.fingerprint == pack.record.fingerprint:
        made = dataclasses.replace(made, scaled=pack.record.scaled, evaluation=pack.record.evaluation)
    elif made.scaled is not None and made.fingerprint == made.scaled.of:
        made = dataclasses.replace(made, scaled=None)
    write_record(staged / PACK_NAME, made)
    return made


def _copied(pack: Pack, name: str, tensor: BlockTensor, stream: BinaryIO) -> list[Row]:
    """A tensor's parts as they are stored, once their digest is right; that of a delta needs the base, and is looked at
    when the pack is attached.
    """
    parts: tuple[str, ...] = (name,)
    if pack.record.encoding == "int8" and is_rounded(tensor):
        parts = (name, name + SCALE)
        for _ in decoded(pack, name, tensor, None):
            pass  # refused at its last piece, where it is wrong
    elif pack.record.encoding != "delta":
        for piece in decoded(pack, name, tensor, None):
            stream.write(piece)
        return [(name, tensor.dtype, tensor.shape)]
    for part in parts:
        for piece in pieces(pack.folder, pack.stored[part], PIECE_BYTES):
            stream.write(piece)
    return [(part, pack.stored[part].dtype, pack.stored[part].shape) for part in parts]


Named = tuple[str, BlockTensor]
"""A tensor's name in the pack, and what it is."""


def _multiplied(pack: Pack, named: Named, by: float, stream: BinaryIO) -> tuple[list[Row], str]:
    """A writer times the gain, stored as it was; its rows of the header, and the digest of its numbers."""
    name, tensor = named
    algorithm, hasher = new_hasher()
    at = stream.tell()
    for piece in decoded(pack, name, tensor, None):
        # Of a gain g stored as w = g - 1: by (1 + w) - 1 = by w + (by - 1), which is w where by is 1.
        made = _times(piece, tensor.dtype, by, by - 1 if tensor.starts == "minus-one" else 0.0)
        _refuse_not_finite(pack, name, made, tensor.dtype, by)
        hasher.update(made)
        stream.write(compressed(made, None, tensor.dtype) if pack.record.encoding == "delta" else made)
    is_delta = pack.record.encoding == "delta"
    row: Row = (name, "U8", (stream.tell() - at,)) if is_delta else (name, tensor.dtype, tensor.shape)
    return [row], f"{algorithm}:{hasher.hexdigest()}"


def _rescaled(pack: Pack, named: Named, by: float, stream: BinaryIO) -> tuple[list[Row], str]:
    """A writer of 8 bits: its numbers as they are, the scales of its rows times the gain."""
    name, tensor = named
    (algorithm, hasher), (_, before) = new_hasher(), new_hasher()
    scales = []
    for numbers, scale in _rounded_pieces(pack, name, tensor):
        made = _times(scale, "F32", by)
        opened = unrounded(numbers, made, tensor)
        _refuse_not_finite(pack, name, opened, tensor.dtype, by)
        before.update(unrounded(numbers, scale, tensor))
        hasher.update(opened)
        stream.write(numbers)
        scales.append(made)
    if f"{algorithm}:{before.hexdigest()}" != pack.record.block_digests[name]:
        raise changed(pack, name)
    stream.write(b"".join(scales))
    parts = (name, name + SCALE)
    return [(p, pack.stored[p].dtype, pack.stored[p].shape) for p in parts], f"{algorithm}:{hasher.hexdigest()}"


def _rounded_pieces(pack: Pack, name: str, tensor: BlockTensor) -> Iterator[tuple[bytes, bytes]]:
    """The 8-bit numbers of some whole rows, and these rows' scales."""
    rows = piece_bytes("int8", tensor) // num_bytes(tensor.dtype, tensor.shape[-1:])
    numbers = pieces(pack.folder, pack.stored[name], rows * tensor.shape[-1])
    return zip(numbers, pieces(pack.folder, pack.stored[name + SCALE], rows * 4), strict=True)


def _times(data: bytes, dtype: str, by: float, plus: float = 0.0) -> bytes:
    """Numbers times the gain, in their own precision; what `memory.scale` computes is the same to the bit."""
    import numpy as np

    values = floats_of(data, dtype)
    kind = values.dtype.type
    with np.errstate(over="ignore", invalid="ignore"):
        made = values * kind(by)
        return bytes_of(made + kind(plus) if plus else made, dtype)


def _refuse_not_finite(pack: Pack, name: str, made: bytes, dtype: str, by: float) -> None:
    count = count_not_finite(bytearray(made), dtype)
    if count:
        raise PackError(
            f"the pack {pack.name!r} scaled by {by:g}: {count:,} numbers of {name!r} are NaN or infinite in {dtype}; "
            "expected finite ones; choose a smaller gain, or get the pack again if it holds such"
        )
