"""Changes to JSON that keep it JSON: what a fuzzer of bytes finds only by luck.

In: bytes that are JSON, or several JSON texts with a mark between them. Out: the same with one thing inside
replaced, repeated, renamed or taken away. What is no JSON is given back as None.
"""

from __future__ import annotations

import json
import random
from typing import Any

from fuzz_seeds import SPLIT

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 28, 10**6, 10**9, 2**31, 2**63, 2**64, 10**18, 10**40, 10**400, -(2**63),
    0.0, -0.5, 1e-9, 1e308, "", "0", "²", "\u0661", "\n", "\ud800", "\0", "a" * 300, "../x", "x.safetensors",
    "full_attention", "auto", "fp8", [], [[]], [0], [-1], [1, 2, 3, 4], [None] * 4, [True] * 4, [0] * 4, [1e9] * 3,
    ["a", "b"], {}, {"0": 1}, {"²": 1}, {"": {}}, {"quant_method": "fp8"}, [[["global"], 10**9]],
    [[["global"], -1], [["local"], 5]], "F4", "U8",
)  # fmt: skip
"""Values that programs stumble over."""
_RAW = (b"1e999", b"NaN", b"-Infinity", b"1" * 5000, b"[" * 3000, b'{"a":' * 2000, b"\xff", b"0" * 9)


def mutate(data: bytes, seed: int) -> bytes | None:
    """The bytes with one change, or None when no part is JSON that can be changed."""
    chance = random.Random(seed)
    parts = data.split(SPLIT)
    which = chance.randrange(len(parts))
    try:
        value = json.loads(parts[which])
    except (ValueError, RecursionError):
        return None
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = _changed(value, chance)
    try:
        raw = json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None
    if chance.random() < 0.05:
        raw = raw.replace(b'"a' if chance.random() < 0.5 else b"1", chance.choice(_RAW), 1)
    parts[which] = raw
    return SPLIT.join(parts)


def _changed(value: Any, chance: random.Random) -> Any:
    """A copy of the value with one change, as deep in it as chance goes."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        return _changed_mapping(value, chance)
    if isinstance(value, list) and value and chance.random() < 0.8:
        copy = list(value)
        i = chance.randrange(len(copy))
        act = chance.random()
        if act < 0.6:
            copy[i] = _changed(copy[i], chance)
        elif act < 0.7:
            del copy[i]
        elif act < 0.8:
            copy.insert(i, chance.choice(copy))
        elif act < 0.9:
            copy = copy * chance.choice((2, 2, 3, 50))
        else:
            chance.shuffle(copy)
        return copy
    if type(value) is int and chance.random() < 0.4:
        return value + chance.choice((-1, 1, 2, 10, -value, value, 2**32))
    if isinstance(value, str) and chance.random() < 0.4:
        i = chance.randrange(len(value) + 1)
        return (
            value[:i] + chance.choice(("", "x", ".", "0", "1", "\n", "é", "\ud800")) + value[i + chance.randrange(2) :]
        )
    return chance.choice(ODD)


def _changed_mapping(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    copy = dict(value)
    key = chance.choice(list(copy))
    act = chance.random()
    if act < 0.65:
        copy[key] = _changed(copy[key], chance)
    elif act < 0.72:
        del copy[key]
    elif act < 0.80:
        copy[str(_changed(key, chance))] = copy[key]
    elif act < 0.86:
        copy[str(_changed(key, chance))] = copy.pop(key)
    elif act < 0.93:
        copy[key] = copy[chance.choice(list(copy))]
    else:
        copy[chance.choice(("quantization_config", "auto_map", "text_config", "__metadata__", "kinds", "init"))] = (
            chance.choice(ODD)
        )
    return copy
