"""What a checkpoint's files are besides tensors: enough to write the very same files again around the same bytes.

In: an opened checkpoint, or the record of one and the bytes of its tensors in other files. Out: the text of its
config and index and the header of each weights file; or the files themselves, byte for byte. Refused: a recorded
header that names a tensor that is not there, or in another shape (it may come from a stranger), and a file name that
leads elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blockexpand.checkpoint.ends import GENERATION
from blockexpand.checkpoint.folder import CONFIG, INDEX, Checkpoint, is_shard_name
from blockexpand.checkpoint.header import LENGTH_BYTES, Header, TensorEntry, open_to_read, parse_header
from blockexpand.checkpoint.passes import Place, TensorDigest, copy_tensors
from blockexpand.checkpoint.streams import write_whole
from blockexpand.digests import digest_json
from blockexpand.errors import CheckpointError, RecordError
from blockexpand.records import parse_json
from blockexpand.records.expansion import FileText

MOST_BYTES = 8_000_000
"""Of all texts of one skeleton; a 7B's 291 tensors take some 40 kB. Beyond that (thousands of experts) none is kept,
and the same tensors can only be written into new files."""


def skeleton_of(checkpoint: Checkpoint) -> tuple[FileText, ...]:
    """The texts of config, index and headers; none when they are too long or not plain UTF-8."""
    found = [
        FileText(name=name, text=(checkpoint.folder / name).read_bytes().decode("utf-8"))
        for name in (CONFIG, *((INDEX,) if checkpoint.sharded else ()))
    ]
    left = MOST_BYTES - sum(len(file.text) for file in found)
    for name in checkpoint.shards:
        with open_to_read(checkpoint.folder / name) as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            raw = stream.read(length).decode("utf-8")
        text = raw.rstrip(" ")
        found.append(FileText(name=name, text=text, padding=len(raw) - len(text)))
        left -= len(text)
        if left < 0:
            return ()
    return tuple(found)


def write_skeleton(
    source: Checkpoint, files: Iterable[FileText], folder: Path, config_digest: str
) -> dict[str, TensorDigest]:
    """Write the files into `folder`, the tensors' bytes from `source`, which calls them as the files do; their digests.

    `config_digest` is that of the content of config.json.

    Raises:
        CheckpointError: the texts and the tensors do not belong together.
    """
    places: dict[TensorEntry, list[Place]] = {}
    for file in files:
        if file.name == CONFIG:
            _check_config(file, folder, config_digest)
        if file.name in (CONFIG, INDEX, GENERATION):
            (folder / file.name).write_bytes(file.text.encode())
            continue
        header = _header(file, source, folder)
        for name, entry in header.tensors.items():
            places.setdefault(source.tensors[name], []).append(Place(file=file.name, start=entry.start))
        raw = file.text.encode() + b" " * file.padding
        with open(folder / file.name, "xb", buffering=0) as stream:
            stream.truncate(header.data_start + sum(entry.num_bytes for entry in header.tensors.values()))
            write_whole(stream, len(raw).to_bytes(LENGTH_BYTES, "little") + raw)
    absent = [name for name, entry in source.tensors.items() if entry not in places]
    if absent:
        raise _unfit(folder, f"no recorded file has the tensor {absent[0]!r}")
    return copy_tensors(source, places, folder, digest=True)


def _check_config(file: FileText, folder: Path, expected: str) -> None:
    found = digest_json(parse_json(file.text, CONFIG, constants=True))
    if found != expected:
        raise _unfit(folder, f"the recorded {CONFIG} has the digest {found}, and the plan is for {expected}")


def _header(file: FileText, source: Checkpoint, folder: Path) -> Header:
    if not is_shard_name(file.name):
        raise _unfit(folder, f"the file name {file.name!r} is not that of a weights file in the same folder")
    if not 0 <= file.padding <= MOST_BYTES:
        raise _unfit(folder, f"{file.name} has {file.padding:,} spaces behind its header")
    raw = file.text.encode() + b" " * file.padding
    try:
        stated = parse_json(file.text, f"the recorded header of {file.name}")
    except RecordError as error:
        raise _unfit(folder, str(error)) from None
    names = [name for name in stated if name != "__metadata__"] if isinstance(stated, dict) else []
    for name in names:
        if name not in source.tensors:
            raise _unfit(folder, f"{file.name} has the tensor {name!r}, which is not there")
    header = parse_header(raw, sum(source.tensors[name].num_bytes for name in names), Path(file.name))
    for name, entry in header.tensors.items():
        held = source.tensors[name]
        if (held.dtype, held.shape) != (entry.dtype, entry.shape):
            raise _unfit(
                folder,
                f"{file.name} has {name!r} as {entry.dtype} {list(entry.shape)}, and it is {held.dtype} "
                f"{list(held.shape)}",
            )
    return header


def _unfit(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"cannot write the base's files again to {folder.parent}: {reason}; expected what the record's own checkpoint "
        "holds; the record was changed, so use the original base"
    )
