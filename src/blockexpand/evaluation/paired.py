"""Paired differences with an interval: is one model better on these documents, or is it noise?

The same documents under two models; documents are resampled, so the interval is about other documents
of the same kind. BCa bootstrap of scipy (Efron 1987), 95 %, a fixed seed: the same data, the same interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

_RESAMPLES = 2000
_LEVEL = 0.95

# M = documents or samples.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0 <= self.high


def ratio_difference(ours_M: np.ndarray, theirs_M: np.ndarray, weights_M: np.ndarray) -> Interval:
    """sum(ours - theirs) / sum(weights): the difference of two losses in nats per token.

    Args:
        ours_M: Nats of each document under one model.
        theirs_M: The same documents under the other.
        weights_M: Their tokens.
    """

    def statistic(deltas: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
        return deltas.sum(axis=axis) / weights.sum(axis=axis)

    return _bootstrap((np.asarray(ours_M) - np.asarray(theirs_M), np.asarray(weights_M, dtype=float)), statistic)


def mean_difference(ours_M: Sequence[float] | np.ndarray, theirs_M: Sequence[float] | np.ndarray) -> Interval:
    """The difference of two means of paired samples, e.g. of right (1) and wrong (0) answers."""
    deltas = np.asarray(ours_M, dtype=float) - np.asarray(theirs_M, dtype=float)
    return _bootstrap((deltas,), lambda d, axis=-1: d.mean(axis=axis))


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> Interval:
    from scipy import stats

    point = float(statistic(*data))
    if len(data[0]) < 2 or not np.any(data[0] != data[0][0]):
        return Interval(difference=point, low=point, high=point)
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=_LEVEL,
        method="BCa",
        rng=np.random.default_rng(0),
        batch=200,
    )
    low, high = result.confidence_interval
    return Interval(difference=point, low=float(low), high=float(high))
