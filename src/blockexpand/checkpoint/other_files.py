"""Everything in a model folder that is not its weights or its config: which files travel, which stay.

In: an opened checkpoint. Out: the relative paths to copy through (tokenizer, chat template, generation
config, licence, whatever else), and those left out: weights in other formats, folders that
hold such weights, hidden folders, and records of an earlier expansion. Refused: a link that leads nowhere, and one
that leads out of the folder, unless the folder is a snapshot in a hub cache and the link leads to its blobs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.checkpoint.folder import CONFIG, Checkpoint
from blockexpand.errors import CheckpointError
from blockexpand.staging import RECORD_NAME

_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".h5", ".msgpack",
    ".onnx", ".onnx_data", ".tflite", ".npz", ".ot", ".mlmodel", ".nemo",
}  # fmt: skip
_INDEX_ENDINGS = (".safetensors.index.json", ".bin.index.json")
_GIT = {".gitattributes", ".gitignore", ".gitmodules"}


@dataclass(frozen=True, kw_only=True)
class OtherFiles:
    """The files beside weights and config."""

    copied: tuple[str, ...]
    """Relative paths to copy through, sorted."""
    left_out: tuple[str, ...]
    """Relative paths (folders end in a slash) that stay behind, sorted."""


def other_files(checkpoint: Checkpoint) -> OtherFiles:
    """Sort the folder's other files into those that travel and those that stay.

    Raises:
        CheckpointError: a file is a link that leads nowhere, so the folder is incomplete, or out of the folder.
    """
    copied, left_out = _walk(checkpoint.folder, "")
    own = {CONFIG, *checkpoint.shards}
    if checkpoint.sharded:
        own.add("model.safetensors.index.json")
    for name in copied:
        _check_link(checkpoint.folder, name)
    return OtherFiles(
        copied=tuple(sorted(name for name in copied if name != CONFIG)),
        left_out=tuple(sorted(name for name in left_out if name not in own)),
    )


def _check_link(folder: Path, name: str) -> None:
    """A link out of the folder could bring any file of this machine into a model that is then given to others."""
    root, file = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    blobs = (root.parent.parent / "blobs",) if root.parent.name == "snapshots" else ()
    if not any(place in file.parents for place in (root, *blobs)):
        raise CheckpointError(
            f"{folder / name} leads to {file}, outside of the model's folder; expected the file itself, or a link into "
            "the blobs of a hub cache; put the file itself there if it belongs to the model, else remove the link"
        )


def _walk(folder: Path, prefix: str) -> tuple[list[str], list[str]]:
    copied: list[str] = []
    left_out: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name = prefix + entry.name
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise CheckpointError(
                f"{entry.path} is a link to {os.readlink(entry.path)!r}, which does not exist; expected the file; "
                "download the model again"
            )
        if entry.is_dir():
            inner_copied, inner_left = _walk(Path(entry.path), name + "/") if _enter(entry) else ([], [name])
            if inner_left or not inner_copied:
                left_out.append(name + "/")
            else:
                copied += inner_copied
        elif entry.is_file() and not _stays(entry.name):
            copied.append(name)
        else:
            left_out.append(name)
    return copied, left_out


def _enter(entry: os.DirEntry[str]) -> bool:
    # A linked folder may lead anywhere, even to a parent of itself.
    return not entry.is_symlink() and not entry.name.startswith(".") and entry.name != "__pycache__"


def _stays(name: str) -> bool:
    return Path(name).suffix.lower() in _WEIGHTS or name.endswith(_INDEX_ENDINGS) or name in _GIT or name == RECORD_NAME


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json into a folder that is not visible yet; Infinity stays as the base has it."""
    with open(folder / CONFIG, "x", encoding="utf-8") as stream:
        stream.write(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def copy_files(checkpoint: Checkpoint, names: Sequence[str] | Mapping[str, str], target: Path) -> None:
    """Copy the named files of the checkpoint's folder into `target`, links followed.

    Of a mapping, the keys are the names in `target`, the values those in the checkpoint's folder.

    Raises:
        CheckpointError: a name is there already, since the file system there does not tell it from another.
    """
    for name, source in names.items() if isinstance(names, Mapping) else zip(names, names, strict=True):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            raise CheckpointError(
                f"{checkpoint.folder / source} would take the place of another file: the file system of "
                f"{target.parent} does not tell their names apart; expected names that differ in more than case; "
                "rename one of them"
            )
        shutil.copyfile(checkpoint.folder / source, path)
