"""From a config to the family that serves it.

In: the content of a `config.json`. Out: the `Family` whose file serves its `model_type`.
Refused: remote code (`auto_map`), quantised weights, more than one text stack, an unknown or missing
`model_type`, another architecture than a language model's, and per-layer entries the family does not know.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.errors import FamilyError, nearest
from blockexpand.families.family import Family
from blockexpand.records import from_plain

_DATA = Path(__file__).parent / "data"
_COMMON = "common.toml"


@dataclass(frozen=True, kw_only=True)
class Common:
    """What holds for every config (data/common.toml)."""

    not_per_layer: tuple[str, ...]
    """Lists that say nothing about single blocks, whatever their length."""
    multimodal: tuple[str, ...]
    """Entries that mean more than one text stack."""


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _common() -> Common:
    return from_plain(Common, _read(_DATA / _COMMON), where=_COMMON)


@functools.cache
def known_families() -> dict[str, Family]:
    """Every family there is a file for, by name."""
    paths = sorted(p for p in _DATA.glob("*.toml") if p.name != _COMMON)
    families = [from_plain(Family, _read(path), where=path.name) for path in paths]
    served = [model_type for family in families for model_type in family.model_types]
    assert len(set(served)) == len(served), f"two family files serve one model_type: {served}"
    return {family.name: family for family in families}


def family_for(config: dict[str, Any], where: str) -> Family:
    """The family that serves this config; `where` names the model in errors.

    Raises:
        FamilyError: the model cannot be expanded, and why.
    """
    _refuse_what_no_family_takes(config, where)
    model_type = config.get("model_type")
    by_type = {t: family for family in known_families().values() for t in family.model_types}
    if not isinstance(model_type, str):
        raise FamilyError(
            f"{where}: config.json has model_type {model_type!r}; expected one of {', '.join(sorted(by_type))}; is "
            "this a Hugging Face model folder?"
        )
    if model_type not in by_type:
        raise FamilyError(
            f"{where}: unknown model family {model_type!r}; {nearest(model_type, by_type)} (families served: "
            f"{', '.join(sorted(by_type))})"
        )
    family = by_type[model_type]
    _refuse_other_architectures(family, config, where)
    _refuse_unknown_per_layer(family, config, where)
    return family


def _refuse_what_no_family_takes(config: dict[str, Any], where: str) -> None:
    if config.get("auto_map"):
        raise FamilyError(
            f"{where}: config.json has auto_map {config['auto_map']!r}, so the model runs code of its own; expected a "
            "model class of transformers; use a version of the model without remote code"
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise FamilyError(
            f"{where}: the weights are quantised (quantization_config: {method!r}), where zero bytes need not mean "
            "zero; expected float weights; expand the unquantised model and quantise the result"
        )
    for key in _common().multimodal:
        if config.get(key) is not None:
            raise FamilyError(
                f"{where}: config.json has {key!r}, so the model is more than one text stack (model_type "
                f"{config.get('model_type')!r}); expected a text-only model; use the text-only version of it"
            )


def _refuse_other_architectures(family: Family, config: dict[str, Any], where: str) -> None:
    for name in config.get("architectures") or ():
        if name not in family.architectures:
            raise FamilyError(
                f"{where}: architecture {name!r} of family {family.name!r} is not served; expected "
                f"{' or '.join(family.architectures)}; use the language model itself as the base"
            )


def _refuse_unknown_per_layer(family: Family, config: dict[str, Any], where: str) -> None:
    depth = family.depth(config)
    known = {rule.key for rule in family.per_layer}
    known |= {rule.list_key for rule in family.per_layer if rule.kind == "threshold"}
    for key, value in _entries(config):
        if key.partition(".")[0] in _common().not_per_layer or key in known:
            continue
        if _looks_per_layer(key, value, depth):
            raise FamilyError(
                f"{where}: config entry {key!r} has one item for each of the {depth} blocks, and family "
                f"{family.name!r} does not say what inserting blocks does to it; expected only "
                f"{', '.join(sorted(known)) or 'none'}; remove it if the model does not use it, or add a rule to the "
                "family file"
            )


def _entries(config: dict[str, Any]) -> list[tuple[str, Any]]:
    inner = [(f"{k}.{k2}", v2) for k, v in config.items() if isinstance(v, dict) for k2, v2 in v.items()]
    return [*config.items(), *inner]


def _looks_per_layer(key: str, value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        # transformers 5's per_layer_config and its like: settings by block index.
        return bool(value) and all(str(k).isdigit() and int(k) < depth for k in value) and "." not in key
    return isinstance(value, list) and len(value) == depth
