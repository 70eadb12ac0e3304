"""`pack scale`: a pack whose blocks write a multiple of what another's write, as a pack of its own.

In: a pack, and a gain. Out: a pack in which what writes to the residual stream is multiplied, and all else the same
bytes; its record says of which pack it was made. Refused: gains that are no scale, blocks that did not start silent
(then no tensor is known to be the last on its way), FP8 weights, numbers that the precision cannot hold.

Each way to the residual stream ends in writers (weights and biases, or behind a norm its gain), and what they give is
in proportion to them (tests/families/test_zoo.py tries each family); so for the same input each of a
block's branches writes the multiple. Numbers are multiplied in float32 (F64: in float64) and rounded once to their
precision: nothing is lost by a power of two, underflow aside. A gain that is stored as gain minus one, w, becomes
by (1 + w) - 1, which is rounded. A piece of a tensor is held at a time; neither torch nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand import __version__
from blockexpand.checkpoint.passes import count_not_finite, new_hasher
from blockexpand.errors import PackError
from blockexpand.packs.card import write_pack_card
from blockexpand.packs.pack import WEIGHTS, Pack, header_of, opened, read_pack
from blockexpand.progress import bar
from blockexpand.records import write_record
from blockexpand.records.pack import LEAST_GAIN, MOST_GAIN, PackRecord, Scaled, tensors_of
from blockexpand.records.plan import SILENT, BlockTensor
from blockexpand.staging import PACK_NAME, check_output, staged_folder
from blockexpand.units import FLOATS


def scale_on_disk(
    pack: Pack | str | Path, out: str | Path, by: float, *, name: str | None = None, overwrite: bool = False
) -> Pack:
    """Write the pack to `out` with what its blocks write times `by`.

    What was measured is not carried along, since it is not true of these blocks, unless they are the very same (by 1,
    or blocks that never trained and write nothing). Blocks that are the first pack's again are not called scaled.

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
    source, target = opened(pack), Path(out)
    begun = _scaled_record(source, by, name)
    _check_beside(source, target)
    check_output(target, overwrite)
    with staged_folder(target, overwrite) as staged:
        made = dataclasses.replace(begun, block_digests=_write_blocks(source, by, staged))
        if made.fingerprint == source.record.fingerprint:
            made = dataclasses.replace(made, scaled=source.record.scaled, evaluation=source.record.evaluation)
        elif made.scaled is not None and made.fingerprint == made.scaled.of:
            made = dataclasses.replace(made, scaled=None)
        write_pack_card(made, staged)
        write_record(staged / PACK_NAME, made)
    return read_pack(target)


def _check_beside(pack: Pack, out: Path) -> None:
    """Refuse an output that is the pack, or inside it, or around it, where replacing it would take the pack along."""
    source, target = pack.folder.resolve(), out.resolve()
    where = "is" if target == source else "is inside" if source in target.parents else "contains"
    if where != "contains" or target in source.parents:
        raise PackError(f"the output {out} {where} the pack {pack.folder}; expected a folder beside it; choose another")


def _scaled_record(pack: Pack, by: float, name: str | None) -> PackRecord:
    """The record of the pack that is to be, still with the old digests, once it is known that it can be made."""
    record, before = pack.record, pack.record.scaled
    total = by * (before.by if before else 1.0)
    if not (LEAST_GAIN <= by <= MOST_GAIN and LEAST_GAIN <= total <= MOST_GAIN):
        first = (
            f", of which this one is {before.by:g} times already" if before and LEAST_GAIN <= by <= MOST_GAIN else ""
        )
        raise PackError(
            f"cannot scale the pack {pack.name!r} by {by:g}{first}; expected a number from {LEAST_GAIN:g} to "
            f"{MOST_GAIN:,g}, counted from the pack that was trained; to have the base alone, leave the pack out"
        )
    if record.plan.init != "identity":
        raise PackError(
            f"the blocks of {pack.name!r} did not start silent (init {record.plan.init!r}), so none of their tensors "
            "is known to be the last before the residual stream; expected init 'identity'; scale another pack"
        )
    for tensor_name, _, tensor in tensors_of(record.plan):
        if tensor.starts in SILENT and tensor.dtype not in FLOATS:
            raise PackError(
                f"the pack {pack.name!r} has {tensor_name!r}, which writes to the residual stream, as {tensor.dtype}; "
                f"expected one of {', '.join(FLOATS)}; scale a pack for the base in such a precision"
            )
    scaled = Scaled(of=before.of if before else record.fingerprint, by=total)
    return dataclasses.replace(
        record, blockexpand_version=__version__, name=name or record.name, evaluation=None, scaled=scaled
    )


def _write_blocks(pack: Pack, by: float, staged: Path) -> dict[str, str]:
    """Write the weights file into an existing folder; each tensor's digest."""
    total, digests = sum(entry.num_bytes for entry in pack.stored.values()), dict(pack.record.block_digests)
    rows = [(name, tensor.dtype, tensor.shape) for name, _, tensor in tensors_of(pack.record.plan)]
    with open(staged / WEIGHTS, "xb") as stream, bar(f"scale {pack.name}", total, "B") as progress:
        stream.write(header_of(rows, total))
        for name, _, tensor in tensors_of(pack.record.plan):
            algorithm, hasher = new_hasher()
            for piece in pack.pieces(name):
                made = _multiplied(pack, name, tensor, piece, by) if tensor.starts in SILENT else piece
                hasher.update(made)
                stream.write(made)
                progress.advance(len(made))
            digests[name] = f"{algorithm}:{hasher.hexdigest()}"
    return digests


def _multiplied(pack: Pack, name: str, tensor: BlockTensor, piece: bytes, by: float) -> bytes:
    """Some of a writer's numbers times the gain, in their own precision."""
    import numpy as np

    values = _floats_of(piece, tensor.dtype)
    kind = values.dtype.type
    with np.errstate(over="ignore", invalid="ignore"):
        made = values * kind(by)
        # Of a gain g stored as w = g - 1: by (1 + w) - 1 = by w + (by - 1), which is w where by is 1.
        found = _bytes_of(made + kind(by - 1) if tensor.starts == "minus-one" and by != 1 else made, tensor.dtype)
    if count := count_not_finite(bytearray(found), tensor.dtype):
        raise PackError(
            f"the pack {pack.name!r} scaled by {by:g}: {count:,} numbers of {name!r} are NaN or infinite in "
            f"{tensor.dtype}; expected finite ones; choose a smaller gain, or get the pack again if it holds such"
        )
    return found


def _floats_of(piece: bytes, dtype: str) -> Any:
    """The numbers in some bytes, of F64 as float64, of narrower ones as float32."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(piece, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F64":
        return np.frombuffer(piece, "<f8")
    return np.frombuffer(piece, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)


def _bytes_of(values: Any, dtype: str) -> bytes:
    """The other way: each number rounded to the nearest one of its precision, ties to even."""
    import numpy as np

    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return bits.astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
