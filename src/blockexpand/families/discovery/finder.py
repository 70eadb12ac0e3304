"""A family without a file, found by structure: what `families.known` asks when no file serves a config.

In: a config of a type that the installed transformers has a causal language model for. Out: a `Family`, read by the
same loader as the files, after a small random model of it with silent copies of its blocks was the same function, bit
for bit. Refused, as `FamilyError` with the reason alone: everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from blockexpand.errors import FamilyError, RecordError
from blockexpand.families.discovery.identity import prove, tokens
from blockexpand.families.discovery.layout import Layout, find_stack, kinds, signatures
from blockexpand.families.discovery.silencers import record_calls, silencing_of
from blockexpand.families.discovery.tensor_names import Names, find_names
from blockexpand.families.discovery.trial_model import (
    attributes,
    bare_model,
    candidates,
    effective,
    has_language_model,
    random_model,
    run,
)
from blockexpand.families.family import NUMBER, Family, tail_matches
from blockexpand.records import from_plain

TIE = "tie_word_embeddings"
_EXTRA = "num_nextn_predict_layers"
"""The entry with the blocks that files number after the last one (transformers 5.24, DeepSeek-V3, GLM-4-MoE)."""
MOST_PARAMETERS = 20_000_000
"""Of the small model: 80 MB, and a moment to run."""
LEAST_BLOCKS = 4
MOST_BLOCKS = 64
MOST_DEPTH = 1000
"""Ten times the deepest models there are: a config may claim anything."""
MOST_KINDS = 12
"""More kinds of block than this is blocks that all differ."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Everything that was found out."""

    config: dict[str, Any]
    """Every entry of the model's own config."""
    small: dict[str, Any]
    """Those of the small model."""
    layout: Layout
    """Where the blocks are."""
    names: Names
    """What files call the small model's tensors."""
    silencing: tuple[dict[str, float], ...]
    """For each of its blocks, the tensors in memory that silence it, and the number each then holds."""


def discover(config: dict[str, Any], harmless: Iterable[str]) -> Family:
    """Find the family of a config; `harmless` are lists that say nothing about single blocks, whatever their length.

    Raises:
        FamilyError: it cannot be found, or a silent copy is no identity; the message is the reason alone.
    """
    model_type = config["model_type"]
    if not has_language_model(model_type):
        raise FamilyError("the installed transformers has no causal language model of this type")
    whole = effective(config)
    for key, value in whole.items():
        if "layer" in key and isinstance(value, int) and value > MOST_DEPTH:
            raise FamilyError(f"{key} is {value}; at most {MOST_DEPTH} blocks are built to look at them")
    layout = find_stack(whole, harmless)
    small, model = small_model(whole, layout)
    calls = record_calls(model, layout.module, tokens(model))
    blocks = model.get_submodule(layout.module).children()
    silencing = tuple(silencing_of(block, call) for block, call in zip(blocks, calls, strict=True))
    found = _Found(
        config=whole, small=small, layout=layout, names=find_names(model, layout.module), silencing=silencing
    )
    try:
        family = from_plain(Family, _plain(found, config, model), where="what was found")
    except RecordError as error:
        raise FamilyError(f"what was found makes no family: {error}") from error
    prove(model, small, layout, family, silencing)
    return family


def _plain(found: _Found, config: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """What the family's file would say."""
    names, defaults = attributes(config["model_type"])
    spelled = {own: alias for alias, own in names.items() if own not in config and alias in config}
    prefix = f"{model.base_model_prefix}."
    spellings = [{"usual": prefix, "instead": ""}] if found.names.stack.startswith(prefix) else []
    return {
        "name": config["model_type"],
        "model_types": [config["model_type"]],
        "architectures": [type(model).__name__],
        "depth_key": spelled.get(found.layout.depth_key, found.layout.depth_key),
        "extra_blocks_key": _EXTRA if _EXTRA in config else None,
        "discovered": True,
        "stack": {"tensors": found.names.stack, "module": found.layout.module},
        "spellings": spellings,
        "outer": _outer_facts(found, model, bool(defaults.get(TIE))),
        "block": _block_facts(found, bare_model(found.config), model),
        "per_layer": _rules(found, config, spelled),
    }


def small_model(whole: dict[str, Any], layout: Layout) -> tuple[dict[str, Any], PreTrainedModel]:
    """A model of the first blocks, small, in which the same blocks are of one kind.

    Raises:
        FamilyError: none could be built and run; why the first attempt failed.
    """
    wanted = kinds(signatures(bare_model(whole), layout.module))
    depth = max(min(LEAST_BLOCKS, layout.depth), max(wanted) + 1)
    if depth > MOST_BLOCKS or len(set(wanted)) > MOST_KINDS:
        raise FamilyError(
            f"its {layout.depth} blocks are of {len(set(wanted))} kinds, the last of which begins at block "
            f"{max(wanted)}; at most {MOST_KINDS} kinds within {MOST_BLOCKS} blocks are tried"
        )
    reason = ""
    for small in candidates(layout.resized(whole, range(depth)), layout.depth_key):
        try:
            bare = bare_model(small)
            count = sum(p.numel() for p in bare.parameters())
            if count > MOST_PARAMETERS:
                raise FamilyError(f"{count:,} parameters are more than {MOST_PARAMETERS:,}")
            if kinds(signatures(bare, layout.module)) != wanted[:depth]:
                raise FamilyError("its blocks change their kinds with the depth or the sizes")
            model = random_model(small)
            run(model, tokens(model))
        except FamilyError as error:
            reason = reason or str(error)
        else:
            return small, model
    raise FamilyError(f"no small model of it could be made: {reason}")


# --- what was found, as the plain data of a family file ---


def _block_facts(found: _Found, bare: nn.Module, model: PreTrainedModel) -> dict[str, Any]:
    """The `block` table: `bare` is the model in its own size, `model` the small one.

    Raises:
        FamilyError: the small model's blocks have other tensors than the model's own.
    """
    patterns = _Patterns(found, bare, model)
    parameters = {
        name for block in model.get_submodule(found.layout.module).children() for name, _ in block.named_parameters()
    }
    tails = [
        dict.fromkeys(patterns.of(i, t) for t, m in block.items() if m in parameters)
        for i, block in enumerate(found.names.blocks)
    ]
    buffers = dict.fromkeys(
        patterns.of(i, t) for i, block in enumerate(found.names.blocks) for t, m in block.items() if m not in parameters
    )
    required = [t for t in tails[0] if all(t in other for other in tails)]
    silent: dict[str, float] = {}
    for i, block in enumerate(found.names.blocks):
        for tail, memory in block.items():
            if memory in found.silencing[i]:
                silent[patterns.of(i, tail)] = found.silencing[i][memory]
    return {
        "required": required,
        "buffers": list(buffers),
        "choices": _choices([[t for t in one if t not in required] for one in tails]),
        "writers": list(silent),
        "minus_one": [tail for tail, value in silent.items() if value == -1.0],
        "in_memory": [{"files": list(files), "memory": memory} for memory, files in found.names.order.items()],
        "experts": any("experts" in tail.split(".") for one in tails for tail in one),
    }


class _Patterns:
    """Tails of the small model's files as names that also the model's own have: `{n}` where there are more of them."""

    def __init__(self, found: _Found, bare: nn.Module, model: PreTrainedModel) -> None:
        self._found = found
        path = found.layout.module
        self._own, self._small = (
            [[name for name, _ in block.named_parameters()] for block in one.get_submodule(path).children()]
            for one in (bare, model)
        )
        for i, small in enumerate(self._small):
            missing = {self._counted(i, t) for t in small} ^ {self._counted(i, t) for t in self._own[i]}
            if missing:
                raise FamilyError(f"which tensors a block has depends on its sizes, e.g. {min(missing)}")

    def of(self, block: int, tail: str) -> str:
        """The pattern of a tail of a small block's files."""
        memory = self._found.names.blocks[block][tail]
        patterns = self._found.names.order.get(memory)
        if patterns is None:
            return self._counted(block, tail)
        return next(p for p in patterns if tail_matches(p, tail))

    def _counted(self, block: int, tail: str) -> str:
        """The tail with `{n}` for a number that the sizes decide."""
        for position, part in enumerate(tail.split(".")):
            if part.isdigit():
                pattern = _replaced(tail, position)
                own, small = (
                    {t.split(".")[position] for t in tails if _replaced(t, position) == pattern}
                    for tails in (self._own[block], self._small[block])
                )
                if own != small:
                    return pattern
        return tail


def _replaced(tail: str, position: int) -> str:
    parts = tail.split(".")
    if position >= len(parts) or not parts[position].isdigit():
        return tail
    return ".".join([*parts[:position], NUMBER, *parts[position + 1 :]])


def _choices(own: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Where blocks differ: tensors that come together are one option, those that rule each other out one choice."""
    holders: dict[tuple[int, ...], list[str]] = {}
    for tail in dict.fromkeys(t for tails in own for t in tails):
        holders.setdefault(tuple(i for i, tails in enumerate(own) if tail in tails), []).append(tail)
    choices: list[dict[str, Any]] = []
    left = dict(holders)
    while left:
        blocks = next(iter(left))
        together = [(blocks, left.pop(blocks))]
        for other in list(left):
            if not set(other) & {i for held, _ in together for i in held}:
                together.append((other, left.pop(other)))
        options = [{"name": f"as in block {held[0]}", "tensors": tails} for held, tails in together]
        covered = {i for held, _ in together for i in held}
        rest = next((i for i in range(len(own)) if i not in covered), None)
        if rest is not None:
            options.append({"name": f"as in block {rest}", "tensors": []})
        choices.append({"what": f"what differs between blocks ({len(choices) + 1})", "options": options})
    return choices


def _outer_facts(found: _Found, model: PreTrainedModel, tie_default: bool) -> dict[str, Any]:
    """The `outer` table."""
    pairs = {tied: _tied_pairs(random_model({**found.small, TIE: tied})) for tied in (False, True)}
    switched = {name: source for name, source in pairs[True].items() if name not in pairs[False]}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    written = {name for name, memory in found.names.outer.items() if memory in parameters}
    head = _name_of(model, model.get_output_embeddings())
    facts: dict[str, Any] = {
        "required": [name for name in found.names.outer if name in written and name not in switched],
        "optional": [
            *(n for n in found.names.outer if n not in written),
            *(n for n in pairs[False] if n not in written),
        ],
        "matrices": [pairs[False].get(head, head)] if head else [],
        "tied": [
            {"tensor": name, "source": source, "switch": TIE, "switch_default": tie_default}
            for name, source in switched.items()
        ],
    }
    known = {*facts["required"], *facts["optional"], *switched}
    facts["matrices"] = [name for name in facts["matrices"] if name in known]
    return facts


def _tied_pairs(model: PreTrainedModel) -> dict[str, str]:
    """Names of tensors that are another one, and that one: the embeddings where they take part."""
    first = _name_of(model, model.get_input_embeddings())
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {
        name: source
        for names in groups.values()
        for source in [first if first in names else names[0]]
        for name in names
        if name != source
    }


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    """The name of a module's weight."""
    names = (name for name, other in model.named_modules() if other is module)
    name = next(names, None) if module is not None else None
    return f"{name}.weight" if name is not None else ""


def _rules(found: _Found, stated: dict[str, Any], spelled: dict[str, str]) -> list[dict[str, Any]]:
    """The `per_layer` tables; `spelled` says how the config at hand spells an entry."""
    tables: list[dict[str, Any]] = []
    for key in found.layout.lists:
        name, items = spelled.get(key, key), found.config[key]
        if stated.get(name) is not None:
            tables.append({"kind": "copy-from-donor", "key": name})
        elif any(item != items[0] for item in items):
            tables.append({"kind": "written-out", "key": name, "items": items})
    return tables
