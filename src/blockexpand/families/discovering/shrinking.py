"""A config of the same kind with small sizes: what a laptop builds and runs in a moment.

In: every entry of a config, as the class fills it in. Out: candidates, from the config itself to ever bolder
shrinkage, best first; which of them builds and runs is tried elsewhere. Nothing but whole numbers changes, and all
that go by one name change alike, so that sizes which must fit each other still do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VOCABULARY = 96
WINDOW = 8
"""Shorter than the sequences that are run, so that a window makes a difference."""
POSITIONS = 128
_EXPERTS, _USED = 4, 2
_SMALL = 16
"""Up to here a whole number is a count, a kernel or a rank that may stay."""
_NAMED: tuple[tuple[str, int], ...] = (
    (r"vocab_size\w*|\w*_vocab_size", VOCABULARY),
    (r"(max|original_max|n)_(position|seq)\w*|n_positions|n_ctx|\w*max_length|max_seq_len\w*", POSITIONS),
    (r"(sliding|attention|local)?_?window(_size)?|\w*attention_(window|chunk)_size|sliding_window_size", WINDOW),
    (r"\w*chunk_?size", WINDOW),
    (r"\w*(num|n)_(local_|routed_)?experts|num_local_experts", _EXPERTS),
    (r"\w*experts_per_tok(en)?|\w*top_?k|moe_k", _USED),
    (r"n_groups?|num_expert_groups?", 1),
    (r"topk_groups?", 1),
)
"""Names of config classes (transformers 5.24, models/*/configuration_*.py) and what they are at most."""
_HEADS = re.compile(r"\w*(num|n)_\w*heads?|\w*_heads|kv_n_heads")
_HEAD_WIDTHS = re.compile(r"\w*head_?(dim|size)|\w*d_head|kv_channels|rotary_dim")
_TOKEN = re.compile(r"\w*_token_(id|ids|index)")
_KEPT = re.compile(r"\w*(id|ids|idx)|transformers_version|\w*expand\w*|\w*kernel\w*|\w*conv\w*|mrope_\w*")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What whole numbers are divided by."""

    heads: int
    """Counts of heads."""
    head_width: int
    """Widths of one head."""

    @property
    def width(self) -> int:
        """Other widths, among them those that are heads times head width."""
        return self.heads * self.head_width


def candidates(config: dict[str, Any], keep: str) -> Iterator[dict[str, Any]]:
    """Smaller configs, the smallest first; the entry `keep` (the depth) is not touched."""
    heads = max([v for k, v in _numbers(config) if _HEADS.fullmatch(k)], default=1)
    for target in (4, 8, 16, heads):
        divisor = _power_of_two(heads // target)
        for head_width in (8, 4, 2, 1):
            yield {**_shrunk(config, Scale(heads=divisor, head_width=head_width)), keep: config[keep]}
    yield {**config, **_named(config)}
    yield config


def _numbers(config: dict[str, Any]) -> list[tuple[str, int]]:
    """The whole numbers, nested ones too, by their own names."""
    found: list[tuple[str, int]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found.append((key, value))
    return found


def _power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _named(config: dict[str, Any]) -> dict[str, Any]:
    return {k: _by_name(k, v) for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool)}


def _by_name(key: str, value: int) -> int:
    if _TOKEN.fullmatch(key):
        return min(value, VOCABULARY - 1)
    for pattern, most in _NAMED:
        if re.fullmatch(pattern, key):
            return min(value, most) if value > 0 else value
    return value


def _shrunk(config: dict[str, Any], scale: Scale) -> dict[str, Any]:
    return {key: _smaller(key, value, scale) for key, value in config.items()}


def _smaller(key: str, value: Any, scale: Scale) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, scale)
    if isinstance(value, list):
        per_head = _HEADS.fullmatch(key.removesuffix("_per_layer"))
        return [_smaller(key.removesuffix("_per_layer"), v, scale) for v in value] if per_head else value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    named = _by_name(key, value)
    if named != value or any(re.fullmatch(pattern, key) for pattern, _ in _NAMED):
        return named
    if _HEADS.fullmatch(key):
        return max(1, value // scale.heads)
    if _HEAD_WIDTHS.fullmatch(key):
        return max(4, value // scale.head_width)
    if value <= _SMALL or _KEPT.fullmatch(key):
        return value
    # Grouped products of experts want rows of whole 16 bytes (torch 2.13, grouped_mm), 8 numbers in bfloat16.
    return -(-value // (8 * scale.width)) * 8
