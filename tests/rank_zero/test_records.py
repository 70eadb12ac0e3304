"""Records: strict both ways, and every refusal names the value."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.errors import RecordError
from blockexpand.records import (
    apply_overrides,
    check,
    dump_json,
    from_plain,
    parse_json,
    read_json,
    read_record,
    read_yaml,
    to_plain,
    write_record,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    kind: Literal["inner"] = "inner"
    rate: float = 0.5

    def __post_init__(self) -> None:
        check(self.rate >= 0, "rate", self.rate, "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    kind: Literal["other"]
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    FORMAT: ClassVar[str] = "test.outer"
    FORMAT_VERSION: ClassVar[int] = 2

    name: str
    count: int = 0
    rate: float = 1.0
    on: bool = False
    mode: Literal["fast", "slow"] = "fast"
    maybe: int | None = None
    parts: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    choice: Inner | Other = dataclasses.field(default_factory=Inner)


FULL = Outer(
    name="x",
    count=3,
    rate=0.25,
    on=True,
    mode="slow",
    maybe=4,
    parts=(Inner(rate=0.1), Inner()),
    pair=(5, 6.5),
    table={"a": 1},
    choice=Other(kind="other", size=7),
)


def test_a_value_survives_a_file(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", FULL)
    assert read_record(Outer, tmp_path / "r.json") == FULL


@settings(deadline=None)
@given(
    name=st.text(),
    count=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    maybe=st.none() | st.integers(),
    table=st.dictionaries(st.text(), st.integers()),
)
def test_any_value_survives(name: str, count: int, rate: float, maybe: int | None, table: dict[str, int]) -> None:
    value = Outer(name=name, count=count, rate=rate, maybe=maybe, table=table)
    assert from_plain(Outer, parse_json(dump_json(value), "x")) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "the key 'name' is missing"),
        ({"name": "x", "cuont": 1}, "unknown key 'cuont'; did you mean 'count'"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"name": "x", "count": 1.5}, "count: expected a whole number, got 1.5"),
        ({"name": "x", "count": True}, "count: expected a whole number, got True"),
        ({"name": "x", "rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"name": "x", "rate": math.inf}, "rate: expected a finite number, got inf"),
        ({"name": "x", "on": "yes"}, "on: expected true or false, got 'yes'"),
        ({"name": "x", "mode": "fats"}, "mode: expected one of 'fast', 'slow', got 'fats'; did you mean 'fast'"),
        ({"name": "x", "maybe": "no"}, "maybe: expected a whole number, got 'no'"),
        ({"name": "x", "parts": 3}, "parts: expected a list, got 3"),
        ({"name": "x", "parts": [{"rat": 1}]}, "parts[0]: unknown key 'rat'"),
        ({"name": "x", "parts": [{"rate": -1.0}]}, "parts[0].rate: expected 0 or more, got -1.0"),
        ({"name": "x", "pair": [1]}, "pair: expected 2 items, got 1"),
        ({"name": "x", "table": [1]}, "table: expected a mapping, got [1]"),
        ({"name": "x", "table": {"a": "b"}}, "table.a: expected a whole number, got 'b'"),
        (
            {"name": "x", "choice": {"kind": "inne"}},
            "choice: expected 'kind' to be one of 'inner', 'other', got 'inne'",
        ),
        ({"name": "x", "choice": 3}, "choice: expected"),
        ([1], "expected a mapping, got [1]"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(data: object, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_plain(Outer, data)
    assert words in str(caught.value)


def test_whole_numbers_serve_as_numbers() -> None:
    made = from_plain(Outer, {"name": "x", "rate": 3})
    assert made.rate == 3.0
    assert type(made.rate) is float


def test_numbers_that_are_none_are_null() -> None:
    assert to_plain({"a": math.nan, "b": [math.inf, 1.0]}) == {"a": None, "b": [None, 1.0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_no_record_is_refused(text: str, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        parse_json(text, "file.json")


def test_versions_and_formats_are_held(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text, words in [
        ('{"name": "x"}', "is not a test.outer file"),
        ('{"format": "other", "format_version": 2, "name": "x"}', "expected format 'test.outer', got 'other'"),
        ('{"format": "test.outer", "format_version": 3, "name": "x"}', "format version 3, this blockexpand reads 2"),
    ]:
        path.write_text(text)
        with pytest.raises(RecordError, match=words):
            read_record(Outer, path)


def test_unreadable_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file: .*absent.json"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(RecordError, match="is a folder"):
        read_json(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(RecordError, match="is not UTF-8 text: .* at byte 7"):
        read_json(tmp_path / "latin.json")


def test_yaml_reads_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1e-3\nb: 2E+4\nc: 3\nd: .5\ne: 1.5\nf: yes it is\ng: '1e-3'\nh: 1_000\n")
    assert read_yaml(path) == {
        "a": 1e-3, "b": 2e4, "c": 3, "d": 0.5, "e": 1.5, "f": "yes it is", "g": "1e-3", "h": 1000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "'a' appears twice"),
        ("a: [1\n", "is not YAML"),
        ("a: !!python/object/apply:os.system [echo]\n", "is not YAML"),
        ("? [1, 2]\n: 3\n", "cannot be a key"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecordError, match=words):
        read_yaml(path)


def test_overrides_reach_into_a_recipe() -> None:
    before = {"optimizer": {"lr": 0.1}, "seed": 0}
    after = apply_overrides(before, ["optimizer.lr=1e-3", "seed=5", "data.general=x/y", "on=true", "parts=[1, 2]"])
    assert after == {
        "optimizer": {"lr": 1e-3}, "seed": 5, "data": {"general": "x/y"}, "on": True, "parts": [1, 2],
    }  # fmt: skip
    assert before == {"optimizer": {"lr": 0.1}, "seed": 0}
    assert apply_overrides({}, ["arms=[{lr: 2e-2, n: 1_000}]"]) == {"arms": [{"lr": 0.02, "n": 1000}]}


@pytest.mark.parametrize(
    ("setting", "words"),
    [("lr", "'lr'"), ("=3", "'=3'"), ("seed.a=1", "'seed' is not a mapping"),
     ("seed=[1", r"the setting 'seed=\[1' is not YAML"), ("seed={a: 1, a: 2}", "'a'")],
)  # fmt: skip
def test_overrides_that_fit_nowhere_are_refused(setting: str, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        apply_overrides({"seed": 0}, [setting])
