"""What MODEL may be, in every verb: one meaning, found out in one place.

In: a model folder; a run folder or an output of `learn` (then the model in it is meant); a GGUF file, or a folder
with one; `org/name` or `org/name@revision` of the hub, from the local cache first. Out: a Hugging Face folder on this
machine. Of the hub only safetensors and small text files are ever fetched: no pickles, no code. A GGUF file is
dequantised once to a plain folder in the cache, named by its contents. Refused, each in one line: what is not there,
and what is something else (an adapter, a pack, a run that has not ended).
`huggingface_hub` and transformers are imported only where they are needed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from blockexpand.digests import digest_file
from blockexpand.errors import CheckpointError
from blockexpand.progress import say
from blockexpand.staging import PACK_NAME, staged_folder

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
_MODEL = "model"
"""Where runs and outputs of `learn` have their model."""


def locate_model(source: str | Path) -> Path:
    """The folder that `source` means.

    Raises:
        CheckpointError: there is no such model, or what is there is something else.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _inside(path)
    if path.is_file():
        return _of_file(path)
    match = _HUB_ID.fullmatch(str(source))
    if match is None:
        raise CheckpointError(
            f"no such folder: {source}; expected a model folder, a run, a GGUF file or a hub id like org/name; check "
            "the path"
        )
    return _from_hub(match["name"], match["revision"])


def tokenizer_file(source: str | Path) -> Path:
    """The fast tokenizer of a model, or in a folder that holds nothing else.

    Raises:
        CheckpointError: there is none, or no such model.
    """
    alone = Path(source) / "tokenizer.json"
    if alone.is_file():
        return alone
    folder = locate_model(source)
    path = folder / "tokenizer.json"
    if path.is_file():
        return path
    others = [name for name in ("tokenizer.model", "spiece.model", "vocab.json") if (folder / name).is_file()]
    convert = (
        f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
    )
    advice = f'convert {others[0]} once: python -c "{convert}"' if others else "copy its base's tokenizer files there"
    raise CheckpointError(f"{folder} has no tokenizer.json; expected a model with a fast tokenizer; {advice}")


def cache_folder(kind: str) -> Path:
    """Where what can be made again is kept between runs: beside the hub's cache, which people put on a large disk."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "blockexpand" / kind


def hub_name(folder: Path) -> str | None:
    """`org/name@commit` of a folder in a hub cache, whatever it was asked for as; None for any other folder."""
    match = _SNAPSHOT.fullmatch("/".join(folder.absolute().parts[-3:]))
    return f"{match['owner']}/{match['name']}@{match['commit']}" if match else None


# --- folders and files --------------------------------------------------------------------------------


def _inside(path: Path) -> Path:
    """The folder itself, or the one in it that has the model."""
    if (path / "config.json").is_file():
        return path
    if (path / _MODEL / "config.json").is_file():
        return path / _MODEL
    expected = "expected a Hugging Face model folder"
    if (path / PACK_NAME).is_file():
        raise CheckpointError(
            f"{path} is a pack, new blocks without their base; {expected}; attach it to its base with `pack attach`, "
            "or give it with --pack beside the base"
        )
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} is an adapter ({_adapted(path / 'adapter_config.json')}), not a model; {expected}; merge it into "
            "its base first (peft: merge_and_unload, then save_pretrained)"
        )
    if (path / "settings.json").is_file() or (path / "learn.json").is_file():
        raise CheckpointError(
            f"{path} is a run that has not ended: it has no {_MODEL}/; {expected}; let the run go on to its end first"
        )
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _of_file(files[0])
    if files:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files; expected one model; name one of them, e.g. {files[0]}"
        )
    raise CheckpointError(f"{path} has no config.json; {expected}; check the path, or convert the model")


def _adapted(config: Path) -> str:
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
        return f"{data.get('peft_type', 'peft')} of {data.get('base_model_name_or_path', 'an unnamed base')}"
    except (OSError, ValueError, AttributeError):
        return "peft"


def _of_file(path: Path) -> Path:
    with open(path, "rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if not is_gguf:
        raise CheckpointError(
            f"{path} is a file, and no GGUF; expected a model; give the folder that holds config.json"
        )
    return _dequantised(path)


# --- GGUF ---------------------------------------------------------------------------------------------


def _dequantised(path: Path) -> Path:
    """The plain folder that a GGUF file's numbers make; made once for each contents of a file."""
    folder = cache_folder("gguf") / f"{path.stem}-{digest_file(path).partition(':')[2][:16]}"
    if not (folder / "config.json").is_file():
        kind, dtype = _numbers_in(path)
        say(f"{path} is GGUF ({kind}); dequantising it to {dtype}, once ...")
        with staged_folder(folder) as staged:
            _convert(path, dtype, staged)
    say(f"{path}: its numbers as a plain model are in {folder}; that is the base from here on")
    return folder


def _numbers_in(path: Path) -> tuple[str, str]:
    """What a GGUF file's matrices are stored as, and the dtype that they are written as.

    Raises:
        CheckpointError: it is damaged, or holds what transformers cannot dequantise or does not know.
    """
    try:
        from gguf import GGUFReader, quants
    except ImportError:
        raise CheckpointError(f"{path} is GGUF, and the package gguf is not installed; pip install gguf") from None
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(path)
        kinds = [tensor.tensor_type.name for tensor in reader.tensors for _ in range(tensor.n_elements // 1024 + 1)]
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read as GGUF: {reason or type(error).__name__}; expected a whole file; download it again"
        ) from None
    known = {"F32", "F16", *(kind.name for kind in quants._type_traits)}
    odd = sorted(set(kinds) - known)
    if odd or architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        what = f"tensors of type {odd[0]}" if odd else f"the architecture {architecture!r}"
        raise CheckpointError(
            f"{path} has {what}, which this version of transformers cannot dequantise; expected one of "
            f"{', '.join(sorted(known if odd else GGUF_SUPPORTED_ARCHITECTURES))}; take the model in safetensors, or "
            "another GGUF of it"
        )
    most = max(sorted(set(kinds)), key=kinds.count)
    return most, {"F32": "float32", "F16": "float16"}.get(most, "bfloat16")


def _convert(path: Path, dtype: str, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, settings = str(path.parent), GgufConfig(dequantize=True)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar of theirs for each tensor
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=path.name,
                dtype=vars(torch)[dtype],
                quantization_config=settings,
                output_loading_info=True,
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
        model, info = loaded
        if info["missing_keys"]:  # transformers fills them with random numbers
            raise ValueError(f"it lacks {min(info['missing_keys'])} ({len(info['missing_keys'])} tensors in all)")
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"transformers cannot dequantise {path}: {reason}; expected a model that it knows; take the model in "
            "safetensors"
        ) from error
    vars(model.config).pop("quantization_config", None)  # it would call the plain numbers packed
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))


# --- the hub ------------------------------------------------------------------------------------------


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
    cached, reason = None, None
    try:
        cached = fetch(local_files_only=True)
    except (OSError, ValueError) as error:
        reason = error
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
    if not (folder / "config.json").is_file() or not index.is_file():
        return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return True  # a broken index is for reading to refuse, in words
    return all(isinstance(n, str) and "/" not in n and (folder / n).is_file() for n in names)
