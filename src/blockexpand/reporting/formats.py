"""Numbers as the page, the terminal and the figures write them: one function a kind of figure.

In: a number with its unit known from the caller. Out: short text, the same everywhere. A figure that does
not exist (None) is a dash. Nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from blockexpand.units import format_bytes, format_count, format_scaled, format_seconds

NONE = "\u2013"
"""What stands where there is no figure: an en dash."""
_MINUS = "\u2212"

Kind = Literal[
    "text",
    "loss",
    "perplexity",
    "difference",
    "share",
    "score",
    "rise",
    "points",
    "count",
    "parameters",
    "bytes",
    "rate",
    "seconds",
    "lr",
]
"""How a figure is written; see the function of the same name."""


def _minus(text: str) -> str:
    """A true minus sign; a rounded zero has none."""
    if text.startswith("-") and not any(c in "123456789" for c in text.split("e")[0]):
        text = text[1:]
    return text.replace("-", _MINUS)


def loss(value: float) -> str:
    """Nats per token: 2.345."""
    return _minus(f"{value:.3f}")


def perplexity(value: float) -> str:
    """Three significant digits, or whole from 100 on: 4.85, 131."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def difference(value: float) -> str:
    """A difference in nats, with its sign: +0.612."""
    return signed(f"{value:+.3f}")


def signed(text: str) -> str:
    """A number that carries its sign, which a rounded zero loses."""
    bare = text[1:]
    return text.replace("-", _MINUS) if any(c in "123456789" for c in bare) else bare


def share(value: float) -> str:
    """A share as whole percent: 0.871 is 87 %."""
    return _minus(f"{100 * value:.0f}") + " %"


def score(value: float) -> str:
    """A figure of a benchmark, mostly a share: three digits."""
    return _minus(f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}")


def rise(value: float) -> str:
    """A relative change with its sign, to a hundredth of a percent below 10 %: +0.42 %, +38.6 %."""
    return signed(f"{100 * value:+.{2 if abs(value) < 0.09995 else 1}f}") + " %"


def points(value: float) -> str:
    """A difference of two shares in percentage points: 0.153 is +15 points."""
    return signed(f"{100 * value:+.0f}") + " points"


def budget(value: float) -> str:
    """A forgetting budget: 0.01 is 1 %."""
    return f"{100 * value:g} %"


def count(value: float) -> str:
    """A whole number with separators: 12,345."""
    return _minus(format_count(value))


def rate(value: float) -> str:
    """Tokens per second, whole."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def lr(value: float) -> str:
    """A learning rate as it is typed: 0.001, 3e-4."""
    if value >= 1e-3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def text(value: Any) -> str:
    """Words as they are."""
    return str(value)


WRITE: dict[Kind, Callable[[Any], str]] = {
    "text": text,
    "loss": loss,
    "perplexity": perplexity,
    "difference": difference,
    "share": share,
    "score": score,
    "rise": rise,
    "points": points,
    "count": count,
    "parameters": format_scaled,
    "bytes": format_bytes,
    "rate": rate,
    "seconds": format_seconds,
    "lr": lr,
}


def write(kind: Kind, value: Any) -> str:
    """The figure in its kind's form, or a dash for None."""
    return NONE if value is None else WRITE[kind](value)
