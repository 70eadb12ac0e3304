"""The axis of forgetting: near the budget in full, far from it still on the page.

In: the values to show, in percent, and the budget. Out: limits, ticks and whether it must be logarithmic. A
reference without a budget may forget a hundred times as much as the others; linear, it would squeeze all of
them into one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blockexpand.reporting import formats
from blockexpand.reporting.plotting import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAR = 5
"""From this many budgets on the axis is logarithmic; it is linear up to `_LINEAR` of them."""
_LINEAR = 2
_STEPS = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How an axis of percents is drawn."""

    low: float
    high: float
    budget: float | None
    """In percent."""
    ticks: tuple[float, ...] | None
    """None where matplotlib's own will do."""

    @property
    def is_logarithmic(self) -> bool:
        """Beyond `linear_to`."""
        return self.ticks is not None

    @property
    def linear_to(self) -> float:
        """Where the logarithmic part begins, in percent."""
        return _LINEAR * (self.budget or 1.0)


def percent_scale(percents: Iterable[float], budget: float | None, coarse: bool = False) -> Scale:
    """The scale on which these values, zero and the budget (a share) can all be read; `coarse` spares ticks."""
    percent = None if budget is None else 100 * budget
    values = [0.0, *([] if percent is None else [percent]), *(float(p) for p in percents)]
    low, high = min(values), max(values)
    if percent is None or max(-low, high) <= _FAR * percent:
        room = 0.07 * (high - low or 1.0)
        return Scale(low=low - room, high=high + room, budget=percent, ticks=None)
    linear_to = _LINEAR * percent
    low = low * 1.4 if low < -linear_to else low - 0.25 * percent
    high = high * 1.4 if high > linear_to else high + 0.25 * percent
    return Scale(low=low, high=high, budget=percent, ticks=_ticks(low, high, percent, coarse))


def _ticks(low: float, high: float, percent: float, coarse: bool) -> tuple[float, ...]:
    sizes = [step * 10.0**power * percent for power in range(6) for step in _STEPS if not coarse or step == 1]
    both = [-size for size in sizes] + [0.0, *sizes]
    return tuple(sorted(tick for tick in both if low <= tick <= high))


def show_percents(axes: Axes, scale: Scale, on: Literal["x", "y"]) -> None:
    """Draw an axis of percents: its zero, its budget, its ticks."""
    line = axes.axvline if on == "x" else axes.axhline
    line(0, color=MUTED, linewidth=0.8, zorder=1)
    axis = axes.xaxis if on == "x" else axes.yaxis
    if scale.is_logarithmic:
        # Set through the axes, for the axis' own setter is not public.
        (axes.set_xscale if on == "x" else axes.set_yscale)("symlog", linthresh=scale.linear_to, linscale=1.0)
        axis.set_ticks(scale.ticks or ())
        axis.set_ticks([], minor=True)
    (axes.set_xlim if on == "x" else axes.set_ylim)(scale.low, scale.high)
    axis.set_major_formatter(lambda value, _: formats.signed(f"{value:+g}"))
    if scale.budget is None:
        return
    line(scale.budget, color=INK, linestyle=(0, (5, 3)), linewidth=1.4, zorder=1)
    words = f"budget{' ' if on == 'x' else chr(10)}{scale.budget:g} %"
    if on == "x":
        place, offset, align = (scale.budget, 1), (0, 3), ("center", "bottom")
    else:
        place, offset, align = (1, scale.budget), (3, 0), ("left", "center")
    axes.annotate(
        words,
        place,
        xycoords=("data", "axes fraction") if on == "x" else ("axes fraction", "data"),
        textcoords="offset points",
        xytext=offset,
        ha=align[0],
        va=align[1],
        color=INK,
        fontsize=11,
    )


def forgetting_label(scale: Scale) -> str:
    """The axis' name, with its change of scale."""
    if scale.is_logarithmic:
        return f"forgetting (%; logarithmic beyond {scale.linear_to:g})"
    return "forgetting (% of the general loss)"
