"""The dtype table against torch and safetensors, and numbers in words."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from blockexpand.units import (
    DTYPES,
    FLOATS,
    format_bytes,
    format_count,
    format_scaled,
    format_seconds,
    stored_dtype,
    torch_dtype,
)


@pytest.mark.parametrize("stored", [name for name, kind in DTYPES.items() if kind.torch_name])
def test_the_table_is_what_torch_and_safetensors_do(stored: str) -> None:
    dtype = torch_dtype(stored)
    assert stored_dtype(dtype) == stored
    assert dtype.itemsize * 8 == DTYPES[stored].bits
    data = save({"a": torch.zeros(1, dtype=dtype)})
    assert f'"dtype":"{stored}"'.encode() in data
    assert load(data)["a"].dtype == dtype
    if DTYPES[stored].exponent:
        bits = torch.tensor([DTYPES[stored].exponent], dtype=torch_dtype(f"I{DTYPES[stored].bits}"))
        assert not torch.isfinite(bits.view(dtype).float()).any()


def test_what_weights_can_be_trained_in() -> None:
    assert all(torch_dtype(name).is_floating_point and torch_dtype(name).itemsize > 1 for name in FLOATS)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (format_count(12345), "12,345"),
        (format_scaled(1_769_472), "1.77 M"),
        (format_scaled(7_241_000_000), "7.24 B"),
        (format_scaled(1.35e11, "FLOP"), "135 GFLOP"),
        (format_scaled(512), "512"),
        (format_bytes(0), "0 B"),
        (format_bytes(999), "999 B"),
        (format_bytes(999_600), "1.00 MB"),
        (format_bytes(16.74e9), "16.7 GB"),
        (format_bytes(2.5e15), "2,500 TB"),
        (format_seconds(0.42), "0.42 s"),
        (format_seconds(12.34), "12.3 s"),
        (format_seconds(59.97), "1 min 00 s"),
        (format_seconds(245), "4 min 05 s"),
        (format_seconds(3725), "1 h 02 min"),
    ],
)
def test_numbers_in_words(said: str, expected: str) -> None:
    assert said == expected
