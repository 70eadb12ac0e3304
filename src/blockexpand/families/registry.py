"""From a config to the family that serves it.

In: the content of a `config.json`, and the files' tensor names where their spelling matters. Out: the `Family`
whose file serves its `model_type`, or what is found by structure when there is no file (`families/discovery`).
Refused: remote code (`auto_map`), quantised weights in which zero bytes need not be zeros, a missing `model_type`
or one of which nothing can be found, models known to have no identity (`data/refused.toml`), other
architectures than a language model's, and per-layer entries the family does not know.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.errors import FamilyError, nearest
from blockexpand.families.entries import entry
from blockexpand.families.family import Family, is_fp8
from blockexpand.families.rules import keys_of
from blockexpand.progress import say
from blockexpand.records import from_plain

_DATA = Path(__file__).parent / "data"
_COMMON = "common.toml"
_REFUSED = "refused.toml"
_QUANTISED = ("quantization_config", "compression_config", "quantization")
"""Where configs say so: transformers; compressed-tensors before it took that name; MLX."""
_SECTIONS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Tensors whose sizes config entries give, in every family that has both."""

    endings: tuple[str, ...]
    """How their names end, in whole components."""
    sizes: tuple[tuple[str, ...], ...]
    """For each dimension the names that its entry goes by; none where no entry gives it."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What holds for every config (data/common.toml)."""

    not_per_layer: tuple[str, ...]
    """Lists that say nothing about single blocks, whatever their length."""
    multimodal: tuple[str, ...]
    """Entries that mean more than one text stack."""
    shapes: tuple[Shape, ...]
    """Tensors whose sizes config entries give."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Models that are understood, and cannot be expanded."""

    model_types: tuple[str, ...]
    """The `model_type` values of config.json."""
    why: str
    """What in them is no identity, as the second half of a sentence."""


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def common() -> Common:
    """What holds for every config."""
    return from_plain(Common, _read(_DATA / _COMMON), where=_COMMON)


@functools.cache
def known_families() -> dict[str, Family]:
    """Every family there is a file for, by name."""
    plain = {path.name: _read(path) for path in sorted(_DATA.glob("*.toml")) if path.name not in (_COMMON, _REFUSED)}
    families = [from_plain(Family, _spelled_out(name, plain), where=name) for name in plain]
    served = [model_type for family in families for model_type in family.model_types]
    assert len(set(served)) == len(served), f"two family files serve one model_type: {served}"
    return {family.name: family for family in families}


def _spelled_out(name: str, plain: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A family file with what it takes from the one it is `like`: entries of its own replace that one's."""
    own = dict(plain[name])
    other = own.pop("like", None)
    if other is None:
        return own
    assert f"{other}.toml" in plain, f"{name} is like {other!r}, and there is no such family file"
    taken = _spelled_out(f"{other}.toml", plain)
    for key, value in own.items():
        taken[key] = {**taken[key], **value} if isinstance(value, dict) and key in taken else value
    return taken


@functools.cache
def refused_model_types() -> dict[str, str]:
    """Every model_type that is known to have no identity, with the reason."""
    listed = [from_plain(Refused, item, where=_REFUSED) for item in _read(_DATA / _REFUSED)["refused"]]
    reasons = {model_type: item.why for item in listed for model_type in item.model_types}
    both = reasons.keys() & {t for family in known_families().values() for t in family.model_types}
    assert not both, f"served and refused: {both}"
    return reasons


def family_for(config: dict[str, Any], where: str, names: Iterable[str] = ()) -> Family:
    """The family that serves this config; `where` names the model in errors.

    With the files' tensor `names`, the family's names are spelled as the files spell them.

    Raises:
        FamilyError: the model cannot be expanded, and why.
    """
    model_type = config.get("model_type")
    by_type = {t: family for family in known_families().values() for t in family.model_types}
    served = by_type.get(model_type) if isinstance(model_type, str) else None
    _refuse_own_code(served, config, where)
    _refuse_quantised(config, where)
    if not isinstance(model_type, str):
        raise FamilyError(
            f"{where}: config.json has model_type {model_type!r}; expected one of the {len(by_type)} in "
            "docs/families.md, e.g. llama; is this a Hugging Face model folder?"
        )
    if model_type in refused_model_types():
        raise FamilyError(
            f"{where}: models of type {model_type!r} cannot be expanded: {refused_model_types()[model_type]}; expected "
            "one in which a block adds f(x) to x, whatever its index; choose another base"
        )
    if model_type not in by_type:
        refuse_more_than_text(config, where)
        family = _found_by_structure(config, where)
    else:
        family = by_type[model_type]
    if not family.config_section:
        refuse_more_than_text(config, where)
    named = config.get("architectures") or []
    for name in named if isinstance(named, list) else [named]:
        if name not in family.architectures:
            raise FamilyError(
                f"{where}: architecture {name!r} of family {family.name!r} is not served; expected "
                f"{' or '.join(family.architectures)}; use the language model itself as the base"
            )
    for rule in family.only:
        value = entry(family.text(config), rule.key)
        if (rule.default if value is None else value) not in rule.allowed:
            raise FamilyError(
                f"{where}: {rule.key} is {value!r}, and then {rule.why}; expected "
                f"{' or '.join(repr(v) for v in rule.allowed)} in family {family.name!r}; choose another base"
            )
    _refuse_unknown_per_layer(family, config, where)
    return family.spelled_as_in(names)


_FOUND: dict[str, Family | FamilyError] = {}
"""What was found of each config without a family file, by its content: it takes seconds, and is asked for often."""


def _found_by_structure(config: dict[str, Any], where: str) -> Family:
    key = json.dumps(config, sort_keys=True, default=str)
    if key not in _FOUND:
        # torch and transformers are needed here, and only here: no family that has a file comes this way.
        from blockexpand.families.discovery import discover

        say(f"  {where}: no file for family {config['model_type']!r}; looking at how such a model is built")
        try:
            _FOUND[key] = discover(config, common().not_per_layer)
        except FamilyError as error:
            _FOUND[key] = error
    found = _FOUND[key]
    if isinstance(found, Family):
        return found
    known = [t for family in known_families().values() for t in family.model_types]
    close = nearest(config["model_type"], known)
    meant = f"; {close}" if close.startswith("did you mean") else ""
    raise FamilyError(
        f"{where}: unknown model family {config['model_type']!r}: it has no file, and by its structure it cannot be "
        f"used: {found}{meant}; expected one of the {len(known)} types of docs/families.md, or one in which a block "
        "adds f(x) to x; choose another base, or write a family file for it"
    )


def _refuse_own_code(family: Family | None, config: dict[str, Any], where: str) -> None:
    named = config.get("auto_map")
    classes = list(named.values()) if isinstance(named, dict) else [named]
    # A copy of a published model may name the code as `org/name--module.Class`.
    known = [
        isinstance(c, str) and family is not None and c.rpartition("--")[2] in family.published_code for c in classes
    ]
    if named and not all(known):
        raise FamilyError(
            f"{where}: config.json has auto_map {config['auto_map']!r}, so the model runs code of its own; expected a "
            "model class of transformers; use a version of the model without remote code"
        )


def _refuse_quantised(config: dict[str, Any], where: str) -> None:
    inner = {f"{section}.{key}": entry(config, f"{section}.{key}") for section in _SECTIONS for key in _QUANTISED}
    for key, quantization in {**{key: config.get(key) for key in _QUANTISED}, **inner}.items():
        if not quantization or (key == "quantization_config" and is_fp8(config)):
            continue
        method = quantization.get("quant_method", quantization) if isinstance(quantization, dict) else quantization
        raise FamilyError(
            f"{where}: the weights are quantised ({key}: {method!r:.80}), where zero bytes need not mean "
            "zero; expected float weights; expand the unquantised model and quantise the result"
        )


def refuse_more_than_text(config: dict[str, Any], where: str) -> None:
    """Refuse a config that speaks of more than one text stack.

    Raises:
        FamilyError: it does.
    """
    for key in common().multimodal:
        if config.get(key) is not None:
            raise FamilyError(
                f"{where}: config.json has {key!r}, so the model is more than one text stack (model_type "
                f"{config.get('model_type')!r}); expected a text-only model; use the text-only version of it"
            )


def _refuse_unknown_per_layer(family: Family, config: dict[str, Any], where: str) -> None:
    depth, text = family.depth(config), family.text(config)
    known = {key for rule in family.per_layer for key in keys_of(rule)}
    harmless = {*common().not_per_layer, *family.not_per_layer}
    inner = [(f"{k}.{k2}", v2) for k, v in text.items() if isinstance(v, dict) for k2, v2 in v.items()]
    for key, value in (*text.items(), *inner):
        if key.partition(".")[0] in harmless or key in known:
            continue
        by_block = isinstance(value, list) and len(value) == depth
        if isinstance(value, dict) and value and "." not in key:
            # transformers 5's per_layer_config and its like: settings by block index.
            by_block = all(re.fullmatch("[0-9]{1,9}", str(k)) and int(k) < depth for k in value)
        if by_block:
            raise FamilyError(
                f"{where}: config entry {key!r} has one item for each of the {depth} blocks, and family "
                f"{family.name!r} does not say what inserting blocks does to it; expected only "
                f"{', '.join(sorted(known)) or 'none'}; remove it if the model does not use it, or add a rule to the "
                "family file"
            )
