"""Everything in a model folder that is not its weights or its config: which files travel, which stay.

In: an opened checkpoint. Out: the relative paths to copy through (tokenizer, chat template, generation
config, licence, whatever else), and those left out: weights in other formats, folders that
hold such weights, hidden folders, and records of an earlier expansion. Refused: a link that leads nowhere.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint.reading import CONFIG, Checkpoint
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
        CheckpointError: a file is a link that leads nowhere, so the folder is incomplete.
    """
    copied, left_out = _walk(checkpoint.folder, "")
    own = {CONFIG, *checkpoint.shards}
    if checkpoint.sharded:
        own.add("model.safetensors.index.json")
    return OtherFiles(
        copied=tuple(sorted(name for name in copied if name != CONFIG)),
        left_out=tuple(sorted(name for name in left_out if name not in own)),
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


def copy_files(checkpoint: Checkpoint, names: tuple[str, ...], target: Path) -> None:
    """Copy the named files of the checkpoint's folder into `target`, links followed."""
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / name, path)
