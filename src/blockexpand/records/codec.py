"""Frozen dataclasses to JSON and YAML and back, strictly.

In: a file a person or an earlier step wrote. Out: a value whose every field has the type its class
declares. Refused, with the path of the field and the offending value: unknown keys (the nearest known
one is named), missing keys, wrong types, duplicate keys, other formats and newer versions.

A class that is saved on its own declares what it is::

    FORMAT: ClassVar[str] = "blockexpand.plan"
    FORMAT_VERSION: ClassVar[int] = 1
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import stat
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from blockexpand.errors import RecordError, nearest
from blockexpand.staging import staged_file

T = TypeVar("T")

# YAML 1.1, which PyYAML reads, takes `1e-3` for a string; people write learning rates like that, so
# the resolver below is YAML 1.2's (section 10.3.2).
_YAML_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$")


MAX_TEXT_BYTES = 100_000_000
"""Of a file that is read whole; as much as safetensors allows its headers. The index of a model of 600 billion
parameters takes 9 MB."""
MAX_ITEMS = 4_000_000
"""Of one JSON text: what each takes in memory is many times what it takes in the file (`[],` is three bytes there)."""

WRITTEN_WHEN_SET = {"written": "when set"}
"""Metadata of a field that files leave out while it is its default: added without changing what was written before."""


def to_plain(value: Any) -> Any:
    """The value as dictionaries, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(vars(value)[f.name])
            for f in dataclasses.fields(value)
            if f.metadata != WRITTEN_WHEN_SET or vars(value)[f.name] != f.default
        }
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no NaN; a figure that does not exist is null, never a word some readers choke on.
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise AssertionError(f"cannot write a {type(value).__name__} into a record: {value!r}")


def from_plain(cls: type[T], data: Any, where: str = "") -> T:
    """The value of class `cls` that `data` describes; `where` names its place for the error messages."""
    return _convert(cls, data, where)


def _place(where: str) -> str:
    return where or "the record"


def _describe(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in names:
        return names[kind]
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(kind))
    if origin in (tuple, list):
        return "a list"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "a mapping"
    if origin in (Union, types.UnionType):
        options = typing.get_args(kind)
        tags = [_kind_of(option) for option in options if dataclasses.is_dataclass(option)]
        if len(tags) == len(options) and None not in tags:
            return "a mapping whose 'kind' is one of " + ", ".join(repr(tag) for tag in tags)
        return " or ".join(_describe(a) if a is not types.NoneType else "null" for a in options)
    return str(kind)


def _wrong(kind: Any, data: Any, where: str) -> RecordError:
    shown = repr(data)
    shown = shown if len(shown) <= 200 else shown[:197] + "..."
    return RecordError(f"{_place(where)}: expected {_describe(kind)}, got {shown}")


def _convert(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(typing.cast(type, kind), data, where)
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, data, where)
    if origin is Literal:
        if data not in typing.get_args(kind) or isinstance(data, bool):
            hint = nearest(data, typing.get_args(kind)) if isinstance(data, str) else ""
            raise RecordError(f"{_place(where)}: expected {_describe(kind)}, got {data!r}; {hint}".rstrip("; "))
        return data
    if origin in (tuple, list):
        return _convert_sequence(kind, data, where)
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(kind, data, where)
        item_kind = typing.get_args(kind)[1]
        return {str(key): _convert(item_kind, item, f"{where}.{key}".lstrip(".")) for key, item in data.items()}
    return _convert_scalar(kind, data, where)


def _convert_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise RecordError(f"{_place(where)}: expected a number below 1.8e308, got {data!r}") from None
    if kind in (str, int, float, bool) and type(data) is kind:
        if isinstance(data, float) and not math.isfinite(data):
            raise RecordError(f"{_place(where)}: expected a finite number, got {data!r}")
        return data
    if kind is types.NoneType and data is None:
        return None
    raise _wrong(kind, data, where)


def _convert_sequence(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, list | tuple):
        raise _wrong(kind, data, where)
    args = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(data) != len(args):
            raise RecordError(f"{_place(where)}: expected {len(args)} items, got {len(data)}: {data!r}")
        return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, data, strict=True)))
    items = [_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    return tuple(items) if typing.get_origin(kind) is tuple else items


def _convert_union(kind: Any, data: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if data is None and types.NoneType in options:
        return None
    classes = {_kind_of(o): o for o in options if dataclasses.is_dataclass(o) and _kind_of(o) is not None}
    if classes and isinstance(data, dict):
        chosen = data.get("kind")
        if chosen not in classes:
            known = ", ".join(repr(name) for name in classes)
            raise RecordError(f"{_place(where)}: expected 'kind' to be one of {known}, got {chosen!r}")
        return _convert(classes[chosen], data, where)
    shape = _shape(data)
    known = [option for option in options if option is not types.NoneType]
    for option in (*(one for one in known if _takes(one) == shape), *(known if len(known) == 1 else ())):
        return _convert(option, data, where)
    raise _wrong(kind, data, where)


def _shape(data: Any) -> str:
    return "mapping" if isinstance(data, dict) else "list" if isinstance(data, list | tuple) else "one value"


def _takes(option: Any) -> str:
    """What shape of data an option of a union is for."""
    origin = typing.get_origin(option)
    if dataclasses.is_dataclass(option) or origin is dict:
        return "mapping"
    return "list" if origin in (tuple, list) else "one value"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _kind_of(cls: Any) -> str | None:
    """The one value of a class's `kind: Literal[...]` field, by which a union of classes is told apart."""
    hint = _hints(cls).get("kind")
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Literal else None


def _convert_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(cls, data, where)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            raise RecordError(f"{_place(where)}: unknown key {key!r}; {nearest(str(key), fields)}")
    hints = _hints(cls)
    values = {}
    for name, field in fields.items():
        path = f"{where}.{name}".lstrip(".")
        if name in data:
            values[name] = _convert(hints[name], data[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{_place(where)}: the key {name!r} is missing; expected {_describe(hints[name])}")
    try:
        return cls(**values)
    except RecordError as error:
        # A bound checked in __post_init__ knows the field, not where in the file it stood.
        raise RecordError(f"{where}.{error}" if where else str(error)) from None


def check(condition: bool, field: str, value: Any, expected: str) -> None:
    """Raise the four-part error of a bound; for `__post_init__` of settings.

    Raises:
        RecordError: when `condition` is false.
    """
    if not condition:
        raise RecordError(f"{field}: expected {expected}, got {value!r}")


# --- files -------------------------------------------------------------------------------------------


def read_text(path: Path | str) -> str:
    """The file's text, or a one-line error when it is missing, no plain file, too large or not UTF-8."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            # A pipe that nobody writes to would be waited for without end.
            raise RecordError(f"{path} is a pipe or a device; expected a plain file")
        if found.st_size > MAX_TEXT_BYTES:
            raise RecordError(f"{path} is {found.st_size:,} bytes long; expected at most {MAX_TEXT_BYTES:,}")
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise RecordError(f"{path} is a folder; expected a file") from None
    except PermissionError:
        raise RecordError(f"{path} cannot be read: permission denied") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _no_duplicates(path: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, item in pairs:
            if key in seen:
                raise RecordError(f"{path}: the key {key!r} appears twice; keep one")
            seen[key] = item
        return seen

    return build


def parse_json(text: str, where: str, *, constants: bool = False) -> Any:
    """JSON with duplicate keys, NaN and what cannot be written again refused; `where` names the file in errors.

    With `constants`, Infinity and NaN are read: transformers 4 wrote them into the configs of Mamba-2 and its kin.
    """

    def constant(name: str) -> Any:
        if constants:
            return float(name)
        raise RecordError(f"{where}: {name} is not JSON; expected a finite number or null")

    def finite(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise RecordError(f"{where}: {digits} is larger than any number here; expected one below 1.8e308")
        return number

    items = text.count(",") + text.count("[") + text.count("{")
    if items > MAX_ITEMS:
        raise RecordError(f"{where} holds some {items:,} items; expected at most {MAX_ITEMS:,}")
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates(where), parse_constant=constant, parse_float=finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where} holds text that cannot be written as UTF-8 ({error.object[error.start]!r}); expected whole "
            "characters"
        ) from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        # Python's own guard against numbers of thousands of digits is a plain ValueError.
        raise RecordError(f"{where} is not JSON we read: {error}") from None
    except RecursionError:
        raise RecordError(f"{where} is not a record of ours: nested too deeply") from None


def read_json(path: Path | str, *, constants: bool = False) -> Any:
    """The file's JSON; `constants` as for `parse_json`."""
    return parse_json(read_text(path), str(path), constants=constants)


def dump_json(value: Any) -> str:
    """Canonical text: two spaces, keys in the order of the class, one newline at the end."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Write beside and rename, so that a reader never sees half of it."""
    with staged_file(Path(path)) as stream:
        stream.write(dump_json(value).encode())


def read_yaml(path: Path | str) -> Any:
    """The file's YAML (1.2 floats, no duplicate keys, no Python objects)."""
    return _parse_yaml(read_text(path), str(path))


def _parse_yaml(text: str, where: str) -> Any:
    import yaml  # 20 ms; only recipes need it

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses duplicate keys and reads 1e-3 as a number."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            pairs = [(self.construct_object(k, deep=True), None) for k, _ in node.value]
            for key, _ in pairs:
                if isinstance(key, list | dict):
                    raise RecordError(f"{where}: {key!r} cannot be a key; expected text")
            _no_duplicates(where)(pairs)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # Whole numbers keep their own resolver, which runs first.
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _YAML_FLOAT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise RecordError(f"{where} is not YAML: {line}") from None


def read_record(cls: type[T], path: Path | str) -> T:
    """A saved value, its format and version checked first.

    Raises:
        RecordError: another format, a newer version, or fields that do not fit `cls`.
    """
    data = read_json(path)
    expected, version = vars(cls)["FORMAT"], vars(cls)["FORMAT_VERSION"]
    if not isinstance(data, dict) or "format" not in data:
        raise RecordError(f"{path} is not a {expected} file: it has no 'format'")
    if data["format"] != expected:
        raise RecordError(f"{path}: expected format {expected!r}, got {data['format']!r}")
    if data.get("format_version") != version:
        raise RecordError(
            f"{path}: format version {data.get('format_version')!r}, this blockexpand reads {version}; use the version "
            "of blockexpand that wrote it, or make the file again"
        )
    return from_plain(cls, {k: v for k, v in data.items() if k not in ("format", "format_version")}, where=str(path))


def has_format(value: Any) -> bool:
    """Whether the value's class can be saved on its own."""
    return "FORMAT" in vars(type(value))


def with_format(value: Any) -> dict[str, Any]:
    """The value as plain data, its format and version first."""
    cls = type(value)
    return {"format": cls.FORMAT, "format_version": cls.FORMAT_VERSION, **to_plain(value)}


def write_record(path: Path | str, value: Any) -> None:
    """Save a value whose class declares FORMAT and FORMAT_VERSION."""
    write_json(path, with_format(value))


def apply_overrides(data: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of `data` with `train.lr=1e-3`-like settings applied; values are read as YAML, as in a file.

    Raises:
        RecordError: no `=`, a value that is no YAML, or a path that runs through something that is not a mapping.
    """
    result = json.loads(json.dumps(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise RecordError(f"cannot read the setting {override!r}; expected key=value, e.g. optimizer.lr=1e-3")
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecordError(f"the setting {override!r}: {parent!r} is not a mapping in this recipe")
        node[leaf] = _parse_yaml(text, f"the setting {override!r}")
    return result
