"""The dtypes that files and torch know, and numbers in words: one table, one way to write bytes, counts and durations.

In: a dtype's name in a safetensors header, or a number whose unit the caller knows. Out: facts, or short text, the
same everywhere. Nothing is refused. torch is imported only by the two functions that give or take its dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """One kind of number."""

    bits: int
    """The width of one element."""
    torch_name: str | None = None
    """What torch calls it, e.g. `bfloat16`; None where a weight of ours never has it."""
    exponent: int = 0
    """The bits that are all set in a NaN or an infinity, and in no other value; 0 where there are neither."""


# safetensors 0.8, tensor.rs (Dtype). The exponents: IEEE 754; bfloat16 is the upper half of float32; E4M3 has no
# infinities, and its NaN has the mantissa's bits set too (OCP 8-bit floating point 1.0, section 5.2).
DTYPES = {
    "BOOL": Dtype(8, "bool"),
    "U8": Dtype(8, "uint8"),
    "I8": Dtype(8, "int8"),
    "I16": Dtype(16, "int16"),
    "U16": Dtype(16, "uint16"),
    "I32": Dtype(32, "int32"),
    "U32": Dtype(32, "uint32"),
    "I64": Dtype(64, "int64"),
    "U64": Dtype(64, "uint64"),
    "F4": Dtype(4),
    "F6_E2M3": Dtype(6),
    "F6_E3M2": Dtype(6),
    "F8_E5M2": Dtype(8, "float8_e5m2", 0x7C),
    "F8_E4M3": Dtype(8, "float8_e4m3fn", 0x7F),
    "F8_E8M0": Dtype(8),
    "F8_E4M3FNUZ": Dtype(8),
    "F8_E5M2FNUZ": Dtype(8),
    "F16": Dtype(16, "float16", 0x7C00),
    "BF16": Dtype(16, "bfloat16", 0x7F80),
    "F32": Dtype(32, "float32", 0x7F80_0000),
    "F64": Dtype(64, "float64", 0x7FF0_0000_0000_0000),
    "C64": Dtype(64, "complex64"),
}
"""By the name that safetensors headers spell."""
FLOATS = ("BF16", "F16", "F32", "F64")
"""What weights that can be trained are stored as."""


def torch_dtype(stored: str) -> torch.dtype:
    """torch's dtype of a safetensors name that has one."""
    import torch

    name = DTYPES[stored].torch_name
    assert name is not None, f"torch has no dtype for {stored}"
    return getattr(torch, name)


def stored_dtype(dtype: torch.dtype) -> str:
    """How safetensors headers spell a dtype of torch's."""
    name = str(dtype).removeprefix("torch.")
    return next(stored for stored, kind in DTYPES.items() if kind.torch_name == name)


def format_count(value: float) -> str:
    """A whole number with separators: 12,345."""
    return f"{value:,.0f}"


def format_scaled(value: float, unit: str = "") -> str:
    """Three significant digits in the largest decimal unit that fits: 1.77 M, 135 GFLOP, 12 k; 999 and less are whole.

    A plain number counts in k, M, B and T, as parameters are counted; with a unit, G stands for a billion.
    """
    for prefix, size in (("T", 10**12), ("G" if unit else "B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            decimals = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:,.{decimals}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def format_bytes(value: float) -> str:
    """Bytes in decimal units: 1.23 GB."""
    return format_scaled(value, "B")


def format_seconds(value: float) -> str:
    """A duration: 0.42 s, 12.3 s, 4 min 05 s, 1 h 02 min."""
    if value < 59.95:
        return f"{value:.2f} s" if value < 0.995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
