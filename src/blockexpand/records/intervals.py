"""Paired differences with an interval: is one model better on these documents, or is it noise?

The same documents under two models; documents are resampled, so the interval is about other documents
of the same kind. BCa bootstrap of scipy (Efron 1987), 95 %, a fixed seed: the same data, the same interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

LEAST_PAIRS = 8
"""Below that many documents or samples a bootstrap says nothing of others: no interval is given."""
_RESAMPLES = 2000
_LEVEL = 0.95

# M = documents or samples, S = seeds, K = resamples.


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


def seeded_ratio_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], weights_M: np.ndarray
) -> Interval:
    """The difference of two losses in nats per token, each trained with several seeds.

    Seeds are paired by their place, and both seeds and documents are resampled, so the interval is about other seeds
    and other documents of the same kind: a difference that one seed contradicts is noise. Percentiles of the bootstrap;
    of one seed, `ratio_difference`.

    Args:
        ours: Nats of each document, one array a seed.
        theirs: The same documents and seeds under the other method.
        weights_M: The documents' tokens.
    """
    if len(ours) == 1:
        return ratio_difference(ours[0], theirs[0], weights_M)
    deltas_SM = np.stack(ours) - np.stack(theirs)
    weights_M = np.asarray(weights_M, dtype=float)
    num_seeds, num_documents = deltas_SM.shape
    rng = np.random.default_rng(0)
    drawn_KM = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=_RESAMPLES)
    seeds_KS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=_RESAMPLES) / num_seeds
    differences_K = ((drawn_KM @ deltas_SM.T) * seeds_KS).sum(axis=1) / (drawn_KM @ weights_M)
    low, high = np.percentile(differences_K, [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)])
    return Interval(difference=float(deltas_SM.mean(axis=0).sum() / weights_M.sum()), low=float(low), high=float(high))


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


_Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927); all of [0, 1] where nothing was tried.

    Half successes (ties) may be counted: they vary less than whole ones, so the interval is then wider than it need be.
    """
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, _Z * _Z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # At 0 and at 1 the ends are exact; rounding would leave 1e-17.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == trials else middle + half
