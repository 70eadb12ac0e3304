"""A Hugging Face model folder on disk, opened without reading a tensor.

In: a folder, or a hub id found in the local cache. Out: a frozen `Checkpoint`: its config, and for every
tensor the file, dtype, shape and byte range. Refused: no config, config that is not JSON, pickles, missing or
truncated shards, an index that names files outside the folder, and an index that disagrees with its shards.
This room knows no model family: whether the tensors make a model is planning's question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.checkpoint.header import Header, TensorEntry, read_header
from blockexpand.checkpoint.source import locate_model
from blockexpand.errors import CheckpointError, RecordError
from blockexpand.records import read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_NAME = 255
"""Bytes in a file's name, on every file system of Linux (NAME_MAX)."""
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint."""

    source: str
    """The folder or hub id as it was asked for."""
    folder: Path
    """The folder that holds the files."""
    config: dict[str, Any]
    """The content of config.json."""
    tensors: dict[str, TensorEntry]
    """Every tensor by name; shard by shard, inside a shard in the order of the bytes."""
    metadata: dict[str, str]
    """The `__metadata__` of the (first) weights file."""
    sharded: bool
    """Whether the weights come with an index."""

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the weights files, in order."""
        return tuple(dict.fromkeys(entry.file for entry in self.tensors.values()))

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.num_bytes for entry in self.tensors.values())


def open_checkpoint(source: str | Path) -> Checkpoint:
    """The checkpoint at a path, or of a hub id like `org/name` or `org/name@revision`.

    Raises:
        CheckpointError: it is not there, broken, incomplete, or not in safetensors.
    """
    folder = locate_model(source)
    config = _read_config(folder)
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder} has both {SINGLE} and {INDEX}, and they may be two different models; expected one of them; "
            "remove the one that is stale"
        )
    if index.is_file():
        headers = _read_sharded(folder, index)
    elif single.is_file():
        headers = [read_header(single)]
    else:
        raise _no_weights(folder)
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors; expected the weights of a model; download it again")
    return Checkpoint(
        source=str(source),
        folder=folder,
        config=config,
        tensors=tensors,
        metadata=headers[0].metadata,
        sharded=index.is_file(),
    )


def _read_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    try:
        data = read_json(path, constants=constants)
    except RecordError as error:
        raise CheckpointError(f"{error}; mend the file or download it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {data!r:.80}; expected a JSON object; download it again")
    return data


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG}; expected a Hugging Face model folder; check the path, or convert the model"
        )
    return _read_object(path, constants=True)


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run any code when it is opened; "
            f"expected {SINGLE}; convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    others = sorted(
        p.name for pattern in ("*.gguf", "*.safetensors", "*.h5", "*.msgpack") for p in folder.glob(pattern)
    )
    found = f"only {', '.join(others[:3])}" if others else "no weights"
    return CheckpointError(
        f"{folder} has {found}; expected {SINGLE}, or {INDEX} with its shards; download the safetensors version"
    )


def _read_sharded(folder: Path, index: Path) -> list[Header]:
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            f"{index} has the weight_map {weight_map!r:.80}; expected a file name for each tensor; download it again"
        )
    headers = {}
    for name in sorted(set(weight_map.values())):
        _check_shard_name(name, index)
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"the shard {name} that {index} names is missing; expected all {len(set(weight_map.values()))} shards "
                "in one folder; download it again"
            )
        headers[name] = read_header(path)
    _check_agreement(weight_map, headers, index)
    return list(headers.values())


def is_shard_name(name: str) -> bool:
    """Whether it names a weights file in the folder itself. (The file may be a link: hub caches link into `blobs`.)"""
    plain = name not in (".", "..") and "/" not in name and "\\" not in name and "\0" not in name
    return plain and name.endswith(".safetensors") and len(name.encode()) <= _LONGEST_NAME


def _check_shard_name(name: str, index: Path) -> None:
    if not is_shard_name(name):
        raise CheckpointError(
            f"{index} names the shard {name!r}; expected the plain name of a .safetensors file in the same folder; do "
            "not use this checkpoint unless you know who made it"
        )


def _check_agreement(weight_map: dict[str, str], headers: dict[str, Header], index: Path) -> None:
    held: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header.tensors:
            if name in held:
                raise CheckpointError(
                    f"{index.parent}: the tensor {name!r} is in both {held[name]} and {shard}; expected it once; "
                    "download the checkpoint again"
                )
            held[name] = shard
    for name in (*weight_map, *held):
        if weight_map.get(name) != held.get(name):
            raise CheckpointError(
                f"{index} puts {name!r} in {weight_map.get(name, 'no file')}, and it is in "
                f"{held.get(name, 'no file')}; expected index and shards of the same save; download them together again"
            )
