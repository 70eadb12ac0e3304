"""What a fuzzer calls: bytes in; out comes nothing, or an error that says how a promise was broken.

The promise, for whatever bytes: a value, or a BlockexpandError in one line, in less than a second of processor
time. The targets know nothing of a fuzzer, so that tests run them, too.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fuzz_seeds

from blockexpand.checkpoint import open_checkpoint
from blockexpand.checkpoint.header import parse_header, read_header
from blockexpand.errors import BlockexpandError
from blockexpand.expansion import plan, survey
from blockexpand.expansion.expander import check_fit
from blockexpand.families import family_for, known_families, refused_model_types
from blockexpand.records import dump_json, from_plain, parse_json, with_format
from blockexpand.records.plan import Plan, read_plan

T = TypeVar("T")

MOST_SECONDS = 1.0
"""Of processor time for one input."""
MOST_CHARACTERS = 1500
"""Of a message: a line that somebody reads."""
_FOLDER = Path(tempfile.mkdtemp(prefix="blockexpand-targets-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_LARGEST_FILE = 1 << 40


def value_or_line(call: Callable[[], T]) -> T | None:
    """The value, or None where one of our errors was raised in one line that can be printed."""
    began = time.process_time()
    try:
        value = call()
    except BlockexpandError as error:
        message = str(error)
        assert "\n" not in message, f"an error of more than one line: {message!r}"
        assert len(message) <= MOST_CHARACTERS, f"an error of {len(message):,} characters: {message:.200}"
        message.encode()
        value = None
    spent = time.process_time() - began
    assert spent < MOST_SECONDS, f"took {spent:.1f} s of processor time"
    return value


def header(data: bytes) -> None:
    """A header; its file's length is taken from it where it states one, so that honest ones pass."""
    size = _stated_size(data)
    result = value_or_line(lambda: parse_header(data, size, Path("x.safetensors")))
    if result is not None:
        assert sum(entry.num_bytes for entry in result.tensors.values()) == size


def _stated_size(raw: bytes) -> int:
    """The largest offset that a header states, if it states any."""
    try:
        items = json.loads(raw)
        return max((item["data_offsets"][1] for item in items.values() if "data_offsets" in item), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 28


def file(data: bytes) -> None:
    """A whole safetensors file."""
    path = _FOLDER / "x.safetensors"
    path.write_bytes(data)
    result = value_or_line(lambda: read_header(path))
    if result is not None:
        assert all(8 <= entry.start <= entry.end <= len(data) for entry in result.tensors.values())


def folder(data: bytes) -> None:
    """A model folder: a config, an index (or nothing), the headers of its shards. Then a plan for it."""
    config, index, *shards = [*data.split(fuzz_seeds.SPLIT, 4), b"", b""][:5]
    for path in _FOLDER.iterdir():
        path.unlink()
    (_FOLDER / "config.json").write_bytes(config)
    if index:
        (_FOLDER / "model.safetensors.index.json").write_bytes(index)
    held = [raw for raw in shards if raw]
    for number, raw in enumerate(held, start=1):
        name = f"model-{number:05d}-of-{len(held):05d}.safetensors" if index else "model.safetensors"
        _write_shard(_FOLDER / name, raw)
    checkpoint = value_or_line(lambda: open_checkpoint(_FOLDER))
    if checkpoint is None or _needs_a_model(checkpoint.config):
        return
    if value_or_line(lambda: survey(checkpoint)) is not None:
        _keep(value_or_line(lambda: plan(checkpoint, 1, placement="suffix")))


def _write_shard(path: Path, raw: bytes) -> None:
    size = _stated_size(raw)
    with open(path, "wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        if isinstance(size, int) and 0 <= size < _LARGEST_FILE:
            stream.truncate(8 + len(raw) + size)


def plan_file(data: bytes) -> None:
    """A plan.json, held against bases."""
    path = _FOLDER / "plan.json"
    path.write_bytes(data)
    read = value_or_line(lambda: read_plan(path))
    if read is not None:
        _keep(read)
        for base in fuzz_seeds.some_bases():
            value_or_line(lambda base=base: check_fit(read, base))


def _needs_a_model(content: dict[str, Any]) -> bool:
    """Whether its family is to be found by structure, which imports torch and builds models: that takes seconds."""
    listed = {kind for family in known_families().values() for kind in family.model_types} | set(refused_model_types())
    model_type = content.get("model_type")
    return isinstance(model_type, str) and model_type not in listed


def config(data: bytes) -> None:
    """A config.json, with weights laid out as it asks for; each placement."""
    content = value_or_line(lambda: parse_json(data.decode("utf-8", "replace"), "config.json", constants=True))
    if not isinstance(content, dict) or _needs_a_model(content):
        return
    family = value_or_line(lambda: family_for(content, "fuzzed"))
    if family is None:
        return
    base = value_or_line(lambda: fuzz_seeds.checkpoint_of(family, content))
    if base is None or value_or_line(lambda: survey(base)) is None:
        return
    for wish in ({"blocks": 1}, {"blocks": 2, "placement": "suffix"}, {"after": (0, 0)}):
        _keep(value_or_line(lambda wish=wish: plan(base, **wish)))


def _keep(made: Plan | None) -> None:
    """A plan is worth the name only if it can be saved, and read again as the same."""
    if made is None:
        return
    text = dump_json(with_format(made))
    text.encode()
    plain: dict[str, Any] = json.loads(text)
    again = from_plain(Plan, {k: v for k, v in plain.items() if k not in ("format", "format_version")})
    assert again == made, "a saved plan is not read as it was"
    assert len(made.sources) == made.num_blocks
    assert made.placement.words


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "header": (header, fuzz_seeds.headers),
    "file": (file, lambda: [len(raw).to_bytes(8, "little") + raw + bytes(28) for raw in fuzz_seeds.headers()]),
    "folder": (folder, fuzz_seeds.folders),
    "plan": (plan_file, fuzz_seeds.plans),
    "config": (config, fuzz_seeds.configs),
}
"""What there is to fuzz, and what each starts from."""
