"""Whether a config and the weights beside it can be of one model, as far as headers and numbers tell.

In: a family, and an opened checkpoint. Out: nothing when they agree. Refused, with the entry's name: numbers that no
model can have (NaN, no heads), and tensors of other sizes than the entries give. Which entry gives which size is
data (`families/data/common.toml`); an entry that the config leaves out, and a tensor that a family does not have, say
nothing. No tensor is read, and torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from blockexpand.checkpoint import Checkpoint, compare_tensors
from blockexpand.errors import PlanError
from blockexpand.families import Family, known_shapes

_HEADS, _KEY_HEADS = "num_attention_heads", "num_key_value_heads"
_COUNTS = (_HEADS, _KEY_HEADS, "hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_experts")


def place_of(checkpoint: Checkpoint, name: str) -> str:
    """A tensor, and the file that it is in, as the beginning of an error."""
    return f"{checkpoint.source}: the tensor {name!r} in {checkpoint.tensors[name].file}"


def check_numbers(family: Family, config: dict[str, Any], where: str) -> None:
    """Refuse numbers that no model can have.

    Raises:
        PlanError: the first entry that holds one.
    """
    for path, value in _numbers(config, ""):
        if math.isnan(value) or (path.rpartition(".")[2] == "rope_theta" and value <= 0):
            raise _disagreement(where, path, value, "a number above 0")
    text = family.text(config)
    for key in _COUNTS:
        value = text.get(key)
        if value is not None and type(value) is int and value < 1 and not (key == "num_experts" and value == 0):
            raise _disagreement(where, key, value, "1 or more")
    heads, key_heads = text.get(_HEADS), text.get(_KEY_HEADS)
    if type(heads) is int and type(key_heads) is int and heads % key_heads:
        raise _disagreement(where, _KEY_HEADS, key_heads, f"a divisor of {_HEADS} {heads}")


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number with a point in it (JSON's NaN is one), by its path; ints only for `rope_theta`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, path)
    elif isinstance(value, float) or (type(value) is int and path.endswith("rope_theta")):
        yield path, float(value)


def check_shapes(family: Family, checkpoint: Checkpoint) -> None:
    """Refuse tensors whose sizes are not those that the config gives.

    Raises:
        PlanError: the first of them, with the entry.
    """
    text = family.text(checkpoint.config)
    rules = [(f".{ending}", rule.sizes) for rule in known_shapes() for ending in rule.endings]
    outer = family.outer_known()
    for name, entry in checkpoint.tensors.items():
        if family.locate(name).block is None and name not in outer:
            continue  # a tower beside the text stack, which has sizes of its own
        for ending, sizes in rules:
            if not f".{name}".endswith(ending) or len(sizes) != len(entry.shape):
                continue
            for found, keys in zip(entry.shape, sizes, strict=True):
                key = next((k for k in keys if type(text.get(k)) is int), None)
                if key is not None and text[key] != found:
                    raise PlanError(
                        f"{place_of(checkpoint, name)} has the shape {list(entry.shape)}, and config.json says {key} "
                        f"{text[key]}; expected {found} there; use config and weights of the same model"
                    )
    _check_heads(family, checkpoint, text)


def _check_heads(family: Family, checkpoint: Checkpoint, text: dict[str, Any]) -> None:
    """Queries and keys are as wide as their numbers of heads, whatever the width of one."""
    heads, key_heads = text.get(_HEADS), text.get(_KEY_HEADS)
    if type(heads) is not int or type(key_heads) is not int or family.name in _GATED_QUERIES:
        return
    for block in range(family.depth(checkpoint.config)):
        query, key = (checkpoint.tensors.get(family.name_of(block, f"self_attn.{n}_proj.weight")) for n in ("q", "k"))
        if query and key and query.shape[0] * key_heads != key.shape[0] * heads:
            name = family.name_of(block, "self_attn.k_proj.weight")
            raise PlanError(
                f"{place_of(checkpoint, name)} has the shape {list(key.shape)}, and config.json says "
                f"{_KEY_HEADS} {key_heads} beside {_HEADS} {heads}, and queries {query.shape[0]} rows; expected as "
                "many rows a head; use config and weights of the same model"
            )


_GATED_QUERIES = ("qwen3_next",)
"""Their q_proj also gives a gate, so it is twice as wide (transformers 5.24, modeling_qwen3_next.py)."""


def refuse_untied(family: Family, checkpoint: Checkpoint) -> None:
    """Refuse a pair that the config ties and the files hold twice, with different bytes.

    Raises:
        PlanError: which of the two the model is meant to have is not known.
    """
    for tied in family.tied_under(checkpoint.config):
        one, two = checkpoint.tensors.get(tied.source), checkpoint.tensors.get(tied.tensor)
        if one is None or two is None or one == two:
            continue
        same_kind = (one.dtype, one.shape) == (two.dtype, two.shape)
        if not same_kind or compare_tensors(checkpoint, checkpoint, {tied.source: [tied.tensor]}).different:
            raise PlanError(
                f"{place_of(checkpoint, tied.tensor)} is not {tied.source!r}, and config.json says {tied.switch} true; "
                f"expected one tensor, or two that are equal; set {tied.switch} to false if the model has both"
            )


def _disagreement(where: str, key: str, value: object, expected: str) -> PlanError:
    return PlanError(f"{where}: config.json has {key} {value!r}; expected {expected}; mend the base's config.json")
