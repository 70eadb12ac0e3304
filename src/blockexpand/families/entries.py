"""A config as nested entries, each named by a path with dots: `text_config.num_hidden_layers`.

In: the content of a config.json and paths. Out: the entry, or a copy of the config with entries set. The order
of the entries is kept, and what is not named stays the same object.
"""

from __future__ import annotations

from typing import Any

from blockexpand.errors import FamilyError


def section(config: dict[str, Any], path: str) -> dict[str, Any]:
    """The part of the config at `path`; the whole config for an empty path, or when there is no such part.

    Models of more than text once had their text settings at the top, and classes still read them there.

    Raises:
        FamilyError: the part is something else than settings.
    """
    part = config.get(path) if path else None
    if part is None:
        return config
    if not isinstance(part, dict):
        raise FamilyError(
            f"config.json: {path} is {part!r}; expected the text model's settings there; mend the base's config.json"
        )
    return part


def entry(config: dict[str, Any], path: str) -> Any:
    """The entry at `path`, or None when it or a part on the way is missing."""
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def with_entries(config: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config in which the entries at these paths have these values."""
    result = dict(config)
    for path, value in entries.items():
        *parents, leaf = path.split(".")
        part = result
        for name in parents:
            part[name] = dict(part[name])
            part = part[name]
        part[leaf] = value
    return result


def prefixed(path: str, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a section under their paths in the whole config."""
    return {f"{path}.{key}": value for key, value in entries.items()} if path else entries


def switched_on(config: dict[str, Any], switch: str, default: bool) -> bool:
    """The value of a true-or-false config entry; missing and null mean the config class's default.

    Raises:
        FamilyError: it is neither true nor false.
    """
    value = entry(config, switch)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FamilyError(f"config.json: {switch} is {value!r}; expected true or false; mend the base's config.json")
    return value
