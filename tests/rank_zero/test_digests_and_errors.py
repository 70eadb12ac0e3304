"""Digests name a thing; errors know their nearest names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blockexpand.digests import digest_bytes, digest_file, digest_json, fraction_of
from blockexpand.errors import nearest


def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    expected = "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert digest_bytes(b"abc") == digest_file(tmp_path / "x") == expected


def test_the_order_of_keys_does_not_matter_but_values_do() -> None:
    assert digest_json({"a": 1, "b": (2.5, "é")}) == digest_json({"b": [2.5, "é"], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})


def test_fractions_are_spread_evenly_and_stay() -> None:
    fractions = [fraction_of(str(i), "salt") for i in range(4000)]
    assert all(0 <= f < 1 for f in fractions)
    assert 0.18 < sum(f < 0.2 for f in fractions) / 4000 < 0.22
    assert fraction_of("a", "salt") == fraction_of("a", "salt") != fraction_of("a", "pepper")


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("blokcs", ["blocks", "base"]) == "did you mean 'blocks'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
