"""What fuzzing starts from, made in code: honest headers, folders, plans and configs, one of each family.

Nothing here imports torch: the tensors are names and shapes, laid out from the family files themselves.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import Checkpoint, TensorEntry, num_bytes
from blockexpand.expansion import plan
from blockexpand.families import Family, known_families, with_entries
from blockexpand.families.rules import (
    Between,
    CopyFromDonor,
    Every,
    First,
    Indices,
    Pattern,
    PerLayer,
    Repeats,
    Threshold,
)
from blockexpand.records import dump_json, with_format

DEPTH = 4
SPLIT = b"\n--\n"
"""Between the parts of an input that stands for several files."""
MOST_BLOCKS = 8
"""Blocks that are laid out for a config, however many it claims."""


def config_of(family: Family) -> dict[str, Any]:
    """A config that the family takes, with every per-layer entry it knows."""
    text: dict[str, Any] = {family.depth_key: DEPTH, "vocab_size": 4, "max_position_embeddings": 64}
    for rule in family.per_layer:
        text |= _entries_of(rule)
    for rule in family.only:
        text = with_entries(_with_parents(text, rule.key), {rule.key: rule.allowed[0]})
    top = {"model_type": family.model_types[0], "architectures": list(family.architectures[:1])}
    return {**top, family.config_section: text} if family.config_section else {**top, **text}


def _with_parents(config: dict[str, Any], path: str) -> dict[str, Any]:
    *parents, _ = path.split(".")
    result = dict(config)
    part = result
    for name in parents:
        part[name] = dict(part.get(name) or {})
        part = part[name]
    return result


def _entries_of(rule: PerLayer) -> dict[str, Any]:
    match rule:
        case CopyFromDonor():
            return {rule.key: ["full_attention"] * DEPTH}
        case Threshold():
            return {rule.key: 2, rule.switch: True, rule.also_needs: 32}
        case Pattern():
            return {rule.key: [rule.others, rule.last] * (DEPTH // 2)}
        case Indices():
            return {rule.key: [1]}
        case First():
            return {rule.key: 1}
        case Every():
            return {rule.period_key: 2, rule.offset_key: 1}
        case Between():
            return {rule.start_key: 1, rule.end_key: -1, rule.interval_key: 1}
        case Repeats():
            return {rule.key: [[list(rule.default), DEPTH // len(rule.default)]]}


def checkpoint_of(family: Family, config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of names and shapes that this config describes, with no bytes."""
    tensors: dict[str, TensorEntry] = {}
    position = 0

    def add(name: str) -> None:
        nonlocal position
        shape = (4,) if name.endswith("bias") or "norm" in name else (4, 4)
        end = position + num_bytes("BF16", shape)
        tensors[name] = TensorEntry(file="model.safetensors", dtype="BF16", shape=shape, start=position, end=end)
        position = end

    for name in family.outer_required(config):
        add(name)
    for block in range(min(family.depth(config), MOST_BLOCKS)):
        chosen = [t for c in family.block.choices for t in c.options[block % len(c.options)].tensors]
        for tail in dict.fromkeys((*family.required_tails(config, chosen), *chosen)):
            add(family.name_of(block, tail.replace("{n}", "0")))
    return Checkpoint(
        source="fuzzed", folder=Path("nowhere"), config=config, tensors=tensors, metadata={}, sharded=False
    )


@functools.cache
def some_bases() -> tuple[Checkpoint, ...]:
    """Bases that plans are held against: one of equal blocks, one of two kinds, one with lists."""
    families = known_families()
    return tuple(checkpoint_of(families[name], config_of(families[name])) for name in ("llama", "mixtral", "qwen3"))


def headers() -> list[bytes]:
    """Headers of safetensors files."""
    one = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    two = {**one, "b": {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]}, "__metadata__": {"format": "pt"}}
    empty = {**two, "c": {"dtype": "F4", "shape": [0, 7], "data_offsets": [28, 28]}}
    scalar = {"s": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}
    return [json.dumps(value).encode() for value in (one, two, empty, scalar, {})]


def _header_of(tensors: dict[str, TensorEntry]) -> bytes:
    position, header = 0, {}
    for name, entry in tensors.items():
        end = position + entry.num_bytes
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    return json.dumps(header).encode()


def folders() -> list[bytes]:
    """A config, an index (or nothing) and the headers of one or two shards."""
    seeds = []
    for base in some_bases():
        names = list(base.tensors)
        half = len(names) // 2
        parts = [{n: base.tensors[n] for n in some} for some in (names[:half], names[half:])]
        where = {n: f"model-{i:05d}-of-00002.safetensors" for i, part in enumerate(parts, start=1) for n in part}
        config = json.dumps(base.config).encode()
        seeds.append(SPLIT.join([config, json.dumps({"weight_map": where}).encode(), *map(_header_of, parts)]))
        seeds.append(SPLIT.join([config, b"", _header_of(base.tensors)]))
    return seeds


def plans() -> list[bytes]:
    """Plans for the bases above, of each kind of placement."""
    wishes: list[dict[str, Any]] = [
        {"blocks": 2},
        {"blocks": 1, "placement": "suffix"},
        {"after": (-1, 0, 0, 3)},
        {"blocks": 2, "init": "random"},
    ]
    return [dump_json(with_format(plan(base, **wish))).encode() for base in some_bases() for wish in wishes]


def configs() -> list[bytes]:
    """A config of each family."""
    return [json.dumps(config_of(family)).encode() for family in known_families().values()]
