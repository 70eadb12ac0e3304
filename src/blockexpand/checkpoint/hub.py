"""A hub id to a folder: the local cache first, a download only when it lacks the model.

In: a path, or `org/name`, or `org/name@revision`. Out: a folder on this machine. Only safetensors and small
text files are ever fetched: no pickles, no code. Refused: what is neither a folder nor a model of the hub.
`huggingface_hub` is imported only when the argument is not an existing path.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from blockexpand.errors import CheckpointError

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_SNAPSHOT = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})")
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.md",
    "LICENSE*",
]
_NOT_WANTED = ["original/*", "consolidated*", "*/*.safetensors"]


def resolve(source: str | Path) -> Path:
    """The folder that `source` means.

    Raises:
        CheckpointError: there is no such folder, and no such model in the cache or on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{source} is a file; expected a model folder; give the folder that holds config.json")
    match = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if match is None:
        raise CheckpointError(
            f"no such folder: {source}; expected a Hugging Face model folder or a hub id like org/name; check the path"
        )
    return _from_hub(match["name"], match["revision"])


def hub_name(folder: Path) -> str | None:
    """`org/name@commit` of a folder in a hub cache, whatever it was asked for as; None for any other folder."""
    match = _SNAPSHOT.fullmatch("/".join(folder.absolute().parts[-3:]))
    return f"{match['owner']}/{match['name']}@{match['commit']}" if match else None


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    def fetch(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=_WANTED,
                ignore_patterns=_NOT_WANTED,
            )
        )

    label = f"{name}@{revision}" if revision else name
    try:
        cached = fetch(local_files_only=True)
    except (OSError, ValueError) as error:
        cached, reason = None, error
    else:
        reason = None
    # The cache also lists models of which only the config was ever fetched, or a download that was cut off.
    if cached is not None and (constants.HF_HUB_OFFLINE or _is_complete(cached)):
        return cached
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"{label} is neither a folder nor in the local hub cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is "
            "set; check the name, or unset HF_HUB_OFFLINE to download it"
        ) from reason
    try:
        return fetch(local_files_only=False)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{label} is neither a folder nor a model that can be had from the hub: {first_line}; check the name, the "
            "network, and `hf auth login` for gated models"
        ) from error


def _is_complete(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return True  # a broken index is for reading to refuse, in words
    return all(isinstance(n, str) and "/" not in n and (folder / n).is_file() for n in names)
