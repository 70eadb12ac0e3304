"""Are a pack's bytes those that its record names? Opened piece by piece; nothing is written.

In: a pack, and its base where a pack stored as differences is to be checked whole. Out: the names of the tensors that
could only be opened: without the base a difference has no digest to be held against. Refused: bytes that do not open to
their size or are not those of the digest, and a base that is not the pack's.
"""

from __future__ import annotations

from blockexpand.checkpoint import Checkpoint, digest_tensors
from blockexpand.packs.attachment import combined_for, donors_of
from blockexpand.packs.compatibility import check_digests
from blockexpand.packs.pack import Pack
from blockexpand.packs.record import tensors_of
from blockexpand.packs.weights import Start, decoded, raw_pieces, starts_of
from blockexpand.progress import bar


def check_blocks(pack: Pack, base: Checkpoint | None = None) -> tuple[str, ...]:
    """Hold every tensor of a pack against its digest; the names of those that were only opened, for want of the base.

    Raises:
        PackError: bytes do not open, or are not those that the record names; or the base is not the pack's.
    """
    starts = _starts(pack, base) if base is not None and pack.record.encoding == "delta" else {}
    unheld = []
    with bar("opening the pack", pack.record.block_bytes, "B") as progress:
        for name, _, tensor in tensors_of(pack.record.plan):
            needs = pack.record.encoding == "delta" and tensor.starts == "donor" and name not in starts
            unheld += [name] if needs else []
            for piece in raw_pieces(pack, name, tensor) if needs else decoded(pack, name, tensor, starts.get(name)):
                progress.advance(len(piece))
    return tuple(unheld)


def _starts(pack: Pack, base: Checkpoint) -> dict[str, Start]:
    """How to read what the tensors started from, once it is what they were trained from."""
    combined_for([pack], base)
    donors = donors_of(pack, base)
    wanted = set(donors.values())
    found = digest_tensors(base, [name for name, entry in base.tensors.items() if entry in wanted])
    check_digests(pack, {name: one.digest for name, one in found.items()}, base.source)
    return starts_of(base, pack, donors)
