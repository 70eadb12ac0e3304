"""Does this checkpoint hold the model its config describes? What does one block of it consist of?

In: an opened checkpoint. Out: a frozen `Survey`. Refused: tensors the family does not have, by name; a number of blocks
in the weights that is not the config's; blocks of one kind that differ from each other; weights that are not floats;
numbers in the config that no model can have (NaN, no heads), and tensors of other sizes than its entries give: which
entry gives which size is data (`families/data/common.toml`). No tensor's bytes are read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.checkpoint import Checkpoint, TensorEntry, compare_tensors
from blockexpand.digests import digest_json
from blockexpand.errors import PlanError, nearest
from blockexpand.families import Family, common, family_for, is_fp8, matches_any, missing_number, tail_matches
from blockexpand.records.plan import BlockKind, BlockTensor, Init
from blockexpand.units import FLOATS

_SPELLED = 8
"""How many block indices an error lists."""
_FP8 = "F8_E4M3"
_HEADS, _KEY_HEADS = "num_attention_heads", "num_key_value_heads"
_COUNTS = (_HEADS, _KEY_HEADS, "hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_experts")
_GATED_QUERIES = ("qwen3_next",)
"""Their q_proj also gives a gate, so it is twice as wide (transformers 5.24, modeling_qwen3_next.py)."""


def started(kinds: Sequence[BlockKind], init: Init) -> tuple[BlockKind, ...]:
    """The kinds of block with what their tensors start as when new blocks start in this way."""
    if init == "identity":
        return tuple(kinds)

    def start(tensor: BlockTensor) -> BlockTensor:
        drawn = init == "random" and tensor.parameter and len(tensor.shape) > 1
        return dataclasses.replace(tensor, starts="random" if drawn else "donor")

    return tuple(dataclasses.replace(kind, tensors=tuple(map(start, kind.tensors))) for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts about a base that a plan needs."""

    family: Family
    """The family that serves it."""
    depth: int
    """How many blocks it has."""
    kinds: tuple[BlockKind, ...]
    """The kinds of block it has, in the order in which they first occur."""
    outer: dict[str, TensorEntry]
    """The tensors outside the blocks."""
    tied: tuple[str, ...]
    """Names outside the blocks that are the same tensor as another: not counted, whether stored or not."""
    layout_digest: str
    """The digest of every tensor's name, dtype and shape."""

    def tensors_of(self, block: int) -> tuple[BlockTensor, ...]:
        """The tensors of one block of the base."""
        return next(kind.tensors for kind in self.kinds if block in kind.blocks)


def survey(checkpoint: Checkpoint) -> Survey:
    """Look at config and headers together.

    Raises:
        FamilyError: no family serves the config.
        PlanError: the weights are not the model that the config describes.
    """
    where = checkpoint.source
    family = family_for(checkpoint.config, where, checkpoint.tensors)
    depth = family.depth(checkpoint.config)
    _check_numbers(family, checkpoint.config, where)
    blocks, outer = _sort(family, checkpoint)
    _check_outer(family, checkpoint, outer)
    _check_depth(family, checkpoint, blocks)
    for index in range(depth):
        _check_made(family, checkpoint, index, blocks[index])
        _check_tails(family, checkpoint, index, blocks[index])
    kinds = _kinds(family, depth, blocks)
    floats = (*FLOATS, _FP8) if is_fp8(checkpoint.config) else FLOATS
    of_choices: dict[tuple[str, ...], int] = {}
    for kind in kinds:
        made = tuple(choice.made(blocks[kind[0]])[0].name for choice in family.block.choices)
        first = of_choices.setdefault(made, kind[0])
        for index in kind:
            _check_alike(family, (first, index), blocks, where)
            _check_floats(family, index, blocks[index], floats, where)
    _check_shapes(family, checkpoint)
    return Survey(
        family=family,
        depth=depth,
        kinds=tuple(
            BlockKind(
                blocks=kind,
                tensors=tuple(
                    BlockTensor(
                        tail=tail,
                        dtype=entry.dtype,
                        shape=entry.shape,
                        starts=family.starts(tail),
                        parameter=not family.is_buffer(tail),
                    )
                    for tail, entry in sorted(blocks[kind[0]].items())
                ),
            )
            for kind in kinds
        ),
        outer=outer,
        tied=tuple(t.tensor for t in family.tied_under(checkpoint.config) if t.source in outer),
        layout_digest=layout_digest(checkpoint.tensors),
    )


def layout_digest(tensors: dict[str, TensorEntry]) -> str:
    """The digest of names, dtypes and shapes: the same however the tensors are spread over files."""
    return digest_json({name: [entry.dtype, *entry.shape] for name, entry in tensors.items()})


def _sort(family: Family, checkpoint: Checkpoint) -> tuple[dict[int, dict[str, TensorEntry]], dict[str, TensorEntry]]:
    blocks: dict[int, dict[str, TensorEntry]] = {}
    outer: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.tensors.items():
        place = family.locate(name)
        if place.block is None:
            outer[name] = entry
        else:
            blocks.setdefault(place.block, {})[place.tail] = entry
    return blocks, outer


def _check_outer(family: Family, checkpoint: Checkpoint, outer: dict[str, TensorEntry]) -> None:
    for name in outer:
        if not family.may_be_outer(name):
            raise PlanError(
                f"{_place_of(checkpoint, name)} is not one of family {family.name!r}; "
                f"{nearest(name, family.outer_known())}; expand a checkpoint of the plain, unquantised language model"
            )
    # Of a tied pair one is enough, under either name.
    instead = {tied.source: tied.tensor for tied in family.tied_under(checkpoint.config)}
    for name in family.outer_required(checkpoint.config):
        if name not in outer and instead.get(name) not in outer:
            raise PlanError(
                f"{checkpoint.source}: the tensor {name!r} is missing from {', '.join(checkpoint.shards[:3])}; "
                "expected it under this config.json; download the checkpoint again, or mend its config.json"
            )


def _check_depth(family: Family, checkpoint: Checkpoint, blocks: Iterable[int]) -> None:
    depth, held = family.depth(checkpoint.config), set(blocks)
    extra = family.num_extra_blocks(checkpoint.config)
    surplus = sorted(index for index in held if index >= depth + extra)
    # A config may claim any depth: look only as far as can be said in a line.
    missing = list(itertools.islice((i for i in range(depth) if i not in held), _SPELLED + 1))
    if missing or surplus:
        first = family.name_of(missing[0], "*") if missing else ""
        parts = [f"blocks {_spell(missing)} are missing ({first})"] if missing else []
        files = {e.file for n, e in checkpoint.tensors.items() if surplus and family.locate(n).block == surplus[0]}
        parts += [f"blocks {_spell(surplus)} are too many (in {', '.join(sorted(files))})"] if surplus else []
        raise PlanError(
            f"{checkpoint.source}: config.json says {family.depth_key} {depth}, and the weights hold {len(held)} "
            f"blocks: {' and '.join(parts)}; expected blocks 0 to {depth - 1}; use config and weights of the same model"
        )


def _spell(indices: list[int]) -> str:
    return ", ".join(str(i) for i in indices[:_SPELLED]) + (", ..." if len(indices) > _SPELLED else "")


def _check_made(family: Family, checkpoint: Checkpoint, index: int, tensors: dict[str, TensorEntry]) -> None:
    for choice in family.block.choices:
        made = choice.made(tensors)
        if len(made) != 1:
            found = " and ".join(option.name for option in made) or "none whole"
            raise PlanError(
                f"{checkpoint.source}: block {index} has of {choice.what} {found}; expected exactly one of "
                f"{', '.join(option.name for option in choice.options)}; download the checkpoint again"
            )


def _check_tails(family: Family, checkpoint: Checkpoint, index: int, tensors: dict[str, TensorEntry]) -> None:
    allowed = family.allowed_tails(checkpoint.config, tensors)
    for tail in tensors:
        if not matches_any(allowed, tail):
            group = family.switch_of(tail)
            why = f"{group.switch} is off in config.json" if group else nearest(tail, allowed)
            raise PlanError(
                f"{_place_of(checkpoint, family.name_of(index, tail))} is not one of family {family.name!r} "
                f"under this config; {why}; expand an unquantised checkpoint as transformers saves it"
            )
    for pattern in family.required_tails(checkpoint.config, tensors):
        if not any(tail_matches(pattern, tail) for tail in tensors):
            raise PlanError(
                f"{checkpoint.source}: the tensor {family.name_of(index, pattern)!r} is missing; expected it in every "
                "block under this config.json; download the checkpoint again"
            )
        missing = missing_number(pattern, tensors)
        if missing is not None:
            raise PlanError(
                f"{checkpoint.source}: the tensor {family.name_of(index, missing)!r} is missing, and higher numbers "
                "are there; expected them numbered from 0 without a gap; download the checkpoint again"
            )


def _kinds(family: Family, depth: int, blocks: dict[int, dict[str, TensorEntry]]) -> list[tuple[int, ...]]:
    """The blocks, those that are made alike together."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index in range(depth):
        made = [choice.made(blocks[index])[0].name for choice in family.block.choices]
        # A block may be stored in another dtype than the rest: transformers reads it, so it is a kind of its own.
        dtypes = [f"{tail} {entry.dtype}" for tail, entry in sorted(blocks[index].items())]
        kinds.setdefault((*made, *dtypes), []).append(index)
    return [tuple(indices) for indices in kinds.values()]


def _check_alike(family: Family, pair: tuple[int, int], blocks: dict[int, dict[str, TensorEntry]], where: str) -> None:
    """The second block of the pair is like the first, which stands for its kind."""
    model, index = pair
    for tail in {**blocks[index], **blocks[model]}:
        own, first = (blocks[block].get(tail) for block in (index, model))
        if own is None or first is None or own.shape != first.shape:
            has, other = (f"of shape {list(entry.shape)}" if entry else "not at all" for entry in (own, first))
            raise PlanError(
                f"{where}: block {index} has {family.name_of(index, tail)!r} {has}, and block {model} has it {other}; "
                "expected all blocks of a kind alike; expand a checkpoint as transformers saves it"
            )


def _check_floats(
    family: Family, index: int, tensors: dict[str, TensorEntry], floats: tuple[str, ...], where: str
) -> None:
    for tail, entry in tensors.items():
        if entry.dtype not in floats and not family.is_buffer(tail):
            raise PlanError(
                f"{where}: {family.name_of(index, tail)!r} is stored as {entry.dtype}; expected one of "
                f"{', '.join(floats)}; expand the unquantised model and quantise the result"
            )


def _place_of(checkpoint: Checkpoint, name: str) -> str:
    """A tensor, and the file that it is in, as the beginning of an error."""
    return f"{checkpoint.source}: the tensor {name!r} in {checkpoint.tensors[name].file}"


def _check_numbers(family: Family, config: dict[str, Any], where: str) -> None:
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


def _check_shapes(family: Family, checkpoint: Checkpoint) -> None:
    """Refuse tensors whose sizes are not those that the config gives.

    Raises:
        PlanError: the first of them, with the entry.
    """
    text = family.text(checkpoint.config)
    rules = [(f".{ending}", rule.sizes) for rule in common().shapes for ending in rule.endings]
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
                        f"{_place_of(checkpoint, name)} has the shape {list(entry.shape)}, and config.json says {key} "
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
                f"{_place_of(checkpoint, name)} has the shape {list(key.shape)}, and config.json says "
                f"{_KEY_HEADS} {key_heads} beside {_HEADS} {heads}, and queries {query.shape[0]} rows; expected as "
                "many rows a head; use config and weights of the same model"
            )


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
                f"{_place_of(checkpoint, tied.tensor)} is not {tied.source!r}, and config.json says {tied.switch} "
                f"true; expected one tensor, or two that are equal; set {tied.switch} to false if the model has both"
            )


def _disagreement(where: str, key: str, value: object, expected: str) -> PlanError:
    return PlanError(f"{where}: config.json has {key} {value!r}; expected {expected}; mend the base's config.json")
