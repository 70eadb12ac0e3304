"""A pack on disk, opened without reading a tensor; it may come from a stranger.

In: a folder with `pack.json` and `blocks.safetensors`. Out: a frozen `Pack`. Refused, before anything is allocated for
it: a record or header that is too long, of another format or a newer version; tensors that are not those of the plan,
or of other sizes. That the bytes are those the record's digests name is checked when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint import Checkpoint, TensorEntry, read_header
from blockexpand.errors import PackError, RecordError
from blockexpand.packs.encoding import stored_as
from blockexpand.packs.record import PackRecord, tensors_of
from blockexpand.records import read_record
from blockexpand.staging import PACK_NAME

WEIGHTS = "blocks.safetensors"


@dataclass(frozen=True, kw_only=True)
class Pack:
    """An opened pack."""

    folder: Path
    """Where it is."""
    record: PackRecord
    """What it says of itself."""
    stored: dict[str, TensorEntry]
    """Every tensor of its weights file."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.record.name

    @property
    def num_bytes(self) -> int:
        """The bytes of its two files."""
        return sum((self.folder / name).stat().st_size for name in (PACK_NAME, WEIGHTS))

    def as_checkpoint(self) -> Checkpoint:
        """Its weights file as what the copying functions read."""
        return Checkpoint(
            source=str(self.folder), folder=self.folder, config={}, tensors=self.stored, metadata={}, sharded=False
        )


def read_pack(folder: str | Path) -> Pack:
    """The pack in a folder.

    Raises:
        PackError: it is none, or its weights are not those it names.
        CheckpointError: the weights file is no whole safetensors file.
    """
    path = Path(folder)
    if not (path / PACK_NAME).is_file():
        raise PackError(
            f"{path} has no {PACK_NAME}; expected a pack that `blockexpand pack extract` wrote; check the path"
        )
    try:
        record = read_record(PackRecord, path / PACK_NAME)
    except RecordError as error:
        raise PackError(f"{error}") from None
    if not (path / WEIGHTS).is_file():
        raise PackError(f"{path} has no {WEIGHTS}; expected the blocks beside {PACK_NAME}; copy the whole folder")
    stored = read_header(path / WEIGHTS).tensors
    _check_stored(path, record, stored)
    return Pack(folder=path, record=record, stored=stored)


def _check_stored(path: Path, record: PackRecord, stored: dict[str, TensorEntry]) -> None:
    expected: set[str] = set()
    for name, _, tensor in tensors_of(record.plan):
        for part, reason in stored_as(record.encoding, name, tensor, stored).items():
            expected.add(part)
            if reason:
                raise PackError(
                    f"{path / WEIGHTS}: {part!r} {reason}, with encoding {record.encoding!r}; expected what "
                    f"{PACK_NAME} says; get the pack again"
                )
    for name in stored:
        if name not in expected:
            raise PackError(
                f"{path / WEIGHTS} holds {name!r}, which {PACK_NAME} does not name; expected the tensors of its blocks "
                "alone; get the pack again"
            )
