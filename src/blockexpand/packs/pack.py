"""A pack on disk: `pack.json` and `blocks.safetensors`, opened without reading a tensor. It may come from a stranger.

In: a folder. Out: a frozen `Pack`, what it is in lines for a person, and its tensors' bytes piece by piece, held
against their digests. Refused, before anything is allocated for it: a record or header that is too long, of another
format or version; tensors that are not those of the plan, or of other sizes; bytes that are not those of the digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint import Checkpoint, TensorEntry, build_header, read_header
from blockexpand.checkpoint.header import ALIGNMENT_BYTES, open_to_read
from blockexpand.checkpoint.passes import new_hasher
from blockexpand.errors import PackError, RecordError
from blockexpand.records import read_record
from blockexpand.records.pack import PackRecord, Scaled, tensors_of
from blockexpand.staging import PACK_NAME

WEIGHTS = "blocks.safetensors"
_PIECE_BYTES = 8 << 20
"""Of a tensor, at once: memory does not grow with the model, whatever a stranger's file claims."""
_SMALL_BYTES = 256 << 20
"""A weights file below this is not padded to a page: packs are to be at most a thousandth larger than their blocks."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """An opened pack."""

    folder: Path
    """Where it is."""
    record: PackRecord
    """What it says of itself."""
    stored: Mapping[str, TensorEntry]
    """Every tensor of its weights file, by the id of its block and its tail."""

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
            source=str(self.folder),
            folder=self.folder,
            config={},
            tensors=dict(self.stored),
            metadata={},
            sharded=False,
        )

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of one of its tensors; the last piece comes only when all of them are the right ones.

        Raises:
            PackError: their digest is not the record's.
        """
        entry, (algorithm, hasher), last = self.stored[name], new_hasher(), b""
        with open_to_read(self.folder / entry.file) as stream:
            stream.seek(entry.start)
            for start in range(entry.start, entry.end, _PIECE_BYTES):
                if last:
                    yield last
                last = stream.read(min(_PIECE_BYTES, entry.end - start))
                hasher.update(last)
        self.check_digest(name, f"{algorithm}:{hasher.hexdigest()}")
        if last:
            yield last

    def check_digest(self, name: str, found: str) -> None:
        """Refuse a tensor whose bytes are not those that the record names.

        Raises:
            PackError: they are others.
        """
        if found != self.record.block_digests[name]:
            raise PackError(
                f"the pack {self.folder}: the bytes of {name!r} are not those that {PACK_NAME} names "
                f"({self.record.block_digests[name][:23]}...); expected them as they were extracted; get the pack again"
            )

    def check_blocks(self) -> None:
        """Hold every tensor against its digest.

        Raises:
            PackError: one has other bytes.
        """
        for name in self.stored:
            for _ in self.pieces(name):
                pass


def opened(pack: Pack | str | Path) -> Pack:
    """The pack, read if it is a folder; raises as `read_pack`."""
    return pack if isinstance(pack, Pack) else read_pack(pack)


def read_pack(folder: str | Path) -> Pack:
    """The pack in a folder.

    Raises:
        PackError: it is none, or its weights are not those it names.
        CheckpointError: the weights file is no whole safetensors file.
    """
    path = Path(folder)
    if not (path / PACK_NAME).is_file():
        what = "is no folder" if not path.is_dir() else f"has no {PACK_NAME}" + _model_words(path)
        raise PackError(f"{path} {what}; expected a pack that `blockexpand pack extract` wrote; check the path")
    try:
        record = read_record(PackRecord, path / PACK_NAME)
    except RecordError as error:
        raise PackError(f"{error}") from None
    if not (path / WEIGHTS).is_file():
        raise PackError(f"{path} has no {WEIGHTS}; expected the blocks beside {PACK_NAME}; copy the whole folder")
    stored = read_header(path / WEIGHTS).tensors
    _check_stored(path, record, stored)
    return Pack(folder=path, record=record, stored=stored)


def _model_words(path: Path) -> str:
    """For a model in the place of a pack, as when two arguments were swapped."""
    return ": it is a model, and models come before packs" if (path / "config.json").is_file() else ""


def _check_stored(path: Path, record: PackRecord, stored: dict[str, TensorEntry]) -> None:
    wanted = {name: (tensor.dtype, tensor.shape) for name, _, tensor in tensors_of(record.plan)}
    for name, (dtype, shape) in wanted.items():
        entry = stored.get(name)
        if entry is None or (entry.dtype, entry.shape) != (dtype, shape):
            found = f"is {entry.dtype} {list(entry.shape)}" if entry else "is missing"
            raise PackError(
                f"{path / WEIGHTS}: {name!r} {found}; expected {dtype} {list(shape)}, as {PACK_NAME} says; get the "
                "pack again"
            )
    if odd := [name for name in stored if name not in wanted]:
        raise PackError(
            f"{path / WEIGHTS} holds {odd[0]!r}, which {PACK_NAME} does not name; expected the tensors of its blocks "
            "alone; get the pack again"
        )


def header_of(rows: Sequence[tuple[str, str, tuple[int, ...]]], num_bytes: int) -> bytes:
    """The header of a weights file whose tensors (name, dtype, shape) take so many bytes."""
    return build_header(rows, {"format": "pt"}, alignment=ALIGNMENT_BYTES if num_bytes >= _SMALL_BYTES else 8)


def describe(pack: Pack) -> str:
    """The pack in a few lines. Nothing of it is run or believed."""
    record, base, card = pack.record, pack.record.plan.base, pack.record.card
    blocks = ", ".join(f"{b.id} (copy of {b.donor})" for b in record.plan.new_blocks)
    lines = [
        f"pack {record.name!r}: {len(record.plan.new_blocks)} blocks: {blocks}",
        f"  base: {card.base_model or base.source}, family {base.family}, {base.num_blocks} blocks, "
        f"{len(record.base_digests)} tensors by digest",
        f"  stored: {', '.join(record.dtypes)}, {pack.num_bytes:,} bytes",
        f"  trained: {_trained(record)}",
        *([f"  scaled: {scaled_words(record.scaled)}"] if record.scaled else []),
        f"  fingerprint: {record.fingerprint}",
        f"  licence (as its maker says): {card.licence or 'none stated'}",
    ]
    return "\n".join([*lines, f"  {card.description}"] if card.description else lines)


def scaled_words(scaled: Scaled) -> str:
    """What became of the pack that was trained."""
    return f"what its blocks write is {scaled.by:g} times what those of the pack {scaled.of} write"


def _trained(record: PackRecord) -> str:
    if record.training is None:
        return "no: the blocks are as they were inserted"
    if record.training.get("nothing_inside_budget"):
        return "no: nothing that the run tried was inside its budget, so these blocks are as they were inserted"
    run = record.training.get("run")
    steps, tokens = (run.get(key) if isinstance(run, dict) else None for key in ("num_steps", "num_tokens"))
    return f"yes, {steps} steps on {tokens:,} tokens" if isinstance(steps, int) and isinstance(tokens, int) else "yes"
