"""A family as the text of a family file, to begin one with.

In: a family that was found. Out: TOML that the loader of `families/data` reads to the same family. Nothing is refused.
"""

from __future__ import annotations

import json
from typing import Any

from blockexpand.families.family import Family
from blockexpand.records import to_plain

_HEAD = """\
# Found by structure (python -m blockexpand.families.discovering), for one config: look at every line, name the source.
# What other configs of the family add or leave out (biases, say), and what the config's numbers mean, is not here.
"""


def as_toml(family: Family) -> str:
    """The family file."""
    plain = _without_defaults({k: v for k, v in to_plain(family).items() if k != "discovered"})
    return _HEAD + "\n".join(_table(plain, ())).lstrip("\n") + "\n"


def _without_defaults(value: Any) -> Any:
    """Without what is empty or null, which a file leaves out."""
    if isinstance(value, dict):
        kept = {key: _without_defaults(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, [], {}) or key in ("tensors", "writers")}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value


def _table(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    inner: list[str] = []
    for key, value in table.items():
        name = (*path, key)
        if isinstance(value, dict):
            inner += ["", f"[{'.'.join(name)}]", *_table(value, name)]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                inner += ["", f"[[{'.'.join(name)}]]", *_table(item, name)]
        elif isinstance(value, list) and value:
            lines += [f"{key} = [", *(f"  {_scalar(item)}," for item in value), "]"]
        else:
            lines.append(f"{key} = {_scalar(value)}")
    return lines + inner


def _scalar(value: Any) -> str:
    # JSON's strings, numbers and lists of them are TOML's.
    return json.dumps(value)
