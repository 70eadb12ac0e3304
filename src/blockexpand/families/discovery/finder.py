"""A family without a file, found by structure: what `families.known` asks when no file serves a config.

In: a config of a type that the installed transformers has a causal language model for. Out: a `Family`, read by the
same loader as the files, after a small random model of it with silent copies of its blocks was the same function, bit
for bit. Refused, as `FamilyError` with the reason alone: everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from blockexpand.errors import FamilyError, RecordError
from blockexpand.families.discovery.facts import TIE, Found, block_facts, outer_facts, rules
from blockexpand.families.discovery.identity import prove, tokens
from blockexpand.families.discovery.layout import Layout, find_stack, kinds, signatures
from blockexpand.families.discovery.silencers import record_calls, silencing_of
from blockexpand.families.discovery.tensor_names import find_names
from blockexpand.families.discovery.trial_model import (
    attributes,
    bare_model,
    candidates,
    effective,
    has_language_model,
    random_model,
    run,
)
from blockexpand.families.family import Family
from blockexpand.records import from_plain

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
    found = Found(config=whole, small=small, layout=layout, names=find_names(model, layout.module), silencing=silencing)
    try:
        family = from_plain(Family, _plain(found, config, model), where="what was found")
    except RecordError as error:
        raise FamilyError(f"what was found makes no family: {error}") from error
    prove(model, small, layout, family, silencing)
    return family


def _plain(found: Found, config: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
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
        "outer": outer_facts(found, model, bool(defaults.get(TIE))),
        "block": block_facts(found, bare_model(found.config), model),
        "per_layer": rules(found, config, spelled),
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
