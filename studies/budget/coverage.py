"""How often each upper bound covers: simulated documents, heavy-tailed in how their losses rise, 10 to 10,000 of them.

    python studies/budget/coverage.py OUT.json [POOL.json ...]

In: optionally pools of real documents ({"base": [...], "now": [...]}: sums of losses in nats), which are resampled.
Out: for each population, bound and number of documents: the share of samples whose bound lies above the true rise, and
the bound's median distance above it, in shares of the budget of 1 %.

A document has tokens, a base loss that is in proportion to them, and a relative rise; the rise of a population is that
of its sums, as everywhere here. The same documents are given to each bound.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import special, stats

LEVEL, BUDGET = 0.95, 0.01
COUNTS = (10, 20, 30, 50, 100, 200, 500, 1000, 3000, 10000)
RESAMPLES = 1000

Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
"""(base losses, differences) of [samples, documents]."""


def _base(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    tokens = np.clip(rng.lognormal(5.0, 0.8, shape), 16, 1024)
    return tokens * np.clip(rng.normal(3.0, 0.6, shape), 0.5, None)


def _relative(draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Draw:
    def both(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        base = _base(rng, shape)
        # A short document's mean is noisier than a long one's.
        noise = rng.normal(0, 0.01, shape) * np.sqrt(450 / base)
        return base, base * (0.004 + 0.01 * draw(rng, shape) + noise)

    return both


def _pool(path: str) -> Draw:
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    base, now = np.array(found["base"]), np.array(found["now"])

    def both(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(0, len(base), shape)
        return base[chosen], (now - base)[chosen]

    return both


POPULATIONS: dict[str, Draw] = {
    "normal": _relative(lambda g, s: g.normal(size=s)),
    "t3": _relative(lambda g, s: g.standard_t(3, s)),
    "lognormal, sigma 1": _relative(lambda g, s: g.lognormal(0, 1, s) - np.exp(0.5)),
    "lognormal, sigma 1.5": _relative(lambda g, s: g.lognormal(0, 1.5, s) - np.exp(1.125)),
    "minus lognormal, sigma 1": _relative(lambda g, s: np.exp(0.5) - g.lognormal(0, 1, s)),
    "one in 20 rises by ten": _relative(lambda g, s: np.where(g.random(s) < 0.05, 10.0, 0.0) + g.normal(size=s)),
    "one in 50 rises by twenty": _relative(lambda g, s: np.where(g.random(s) < 0.02, 20.0, 0.0) + g.normal(size=s)),
}


def bounds(base: np.ndarray, difference: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Each bound of each sample [samples], of the documents' [samples, documents]."""
    n = base.shape[1]
    rise = difference.sum(1) / base.sum(1)
    left = difference - rise[:, None] * base
    error = left.std(1, ddof=1) / np.sqrt(n) / base.mean(1)
    found = {"t": rise + stats.t.ppf(LEVEL, n - 1) * error}
    log = np.log(2 / (1 - LEVEL))
    # Maurer and Pontil 2009, theorem 4; the range is not known, and that of the sample stands for it.
    spread = (left.max(1) - left.min(1)) / base.mean(1)
    found["bernstein"] = rise + error * np.sqrt(2 * log) + 7 * spread * log / (3 * (n - 1))
    # Hall's (1992) cubic transformation of t, which takes the skewness out.
    skew, q = stats.skew(left, axis=1), stats.t.ppf(LEVEL, n - 1)
    cube = np.cbrt(1 + skew * (-q / np.sqrt(n) - skew / (6 * n)))
    found["Hall"] = rise - error * np.sqrt(n) * 3 / skew * (cube - 1)
    # Johnson's (1978): the mean moved by the third moment.
    third = (left**3).mean(1) / base.mean(1) ** 3
    var = error**2 * n
    found["Johnson"] = rise + third / (6 * var * n) + third / (3 * var**2) * (q * error) ** 2 + q * error
    weights = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float32)  # [resamples, documents]
    s_x, s_b = weights @ difference.T.astype(np.float32), weights @ base.T.astype(np.float32)
    again = s_x / s_b - rise  # [resamples, samples]
    s_ee = weights @ (left**2).T.astype(np.float32)
    s_eb = weights @ (left * base).T.astype(np.float32)
    s_bb = weights @ (base**2).T.astype(np.float32)
    squares = np.maximum(s_ee - 2 * again * s_eb + again**2 * s_bb, 0)
    error_again = np.sqrt(squares / (n - 1) / n) / (s_b / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_again = np.where(error_again > 0, again / error_again, 0.0)
    found["bootstrap t"] = rise - np.quantile(t_again, 1 - LEVEL, axis=0) * error
    found["larger of t and bootstrap t"] = np.maximum(found["t"], found["bootstrap t"])
    found["t at 97.5 %"] = rise + stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    found["bootstrap t at 97.5 %"] = rise - np.quantile(t_again, (1 - LEVEL) / 2, axis=0) * error
    for times in (1, 2, 3):
        found[f"t, the worst document {times} times more"] = worse(difference, base, left, times)
    below = np.clip((again < 0).mean(0), 1e-3, 1 - 1e-3)
    z_0 = special.ndtri(below)
    acceleration = (left**3).sum(1) / (6 * ((left**2).sum(1)) ** 1.5)
    shifted = z_0 + stats.norm.ppf(LEVEL)
    where = special.ndtr(z_0 + shifted / (1 - acceleration * shifted))
    ordered = np.sort(again, axis=0)
    at = np.clip((where * RESAMPLES).astype(int), 0, RESAMPLES - 1)
    found["BCa"] = rise + ordered[at, np.arange(len(rise))]
    return found


def worse(difference: np.ndarray, base: np.ndarray, left: np.ndarray, times: int) -> np.ndarray:
    """Student's bound as if the document that stands worst had been drawn so many times more.

    What a sample of a skewed population misses is its tail; this puts a piece of it back, at a cost that falls as 1/n.
    """
    at = left.argmax(1)
    rows = np.arange(len(left))
    n = base.shape[1] + times
    more_x, more_b = (np.repeat(part[rows, at][:, None], times, 1) for part in (difference, base))
    x, b = np.concatenate([difference, more_x], 1), np.concatenate([base, more_b], 1)
    rise = x.sum(1) / b.sum(1)
    again = x - rise[:, None] * b
    return rise + stats.t.ppf(LEVEL, n - 1) * again.std(1, ddof=1) / np.sqrt(n) / b.mean(1)


def main() -> None:
    """Simulate, print and write the table."""
    out, *pools = sys.argv[1:]
    populations = POPULATIONS | {f"real: {Path(p).stem}": _pool(p) for p in pools}
    table = []
    for number, (name, draw) in enumerate(populations.items()):
        rng = np.random.default_rng([16, number])
        big = [draw(rng, (200, 10_000)) for _ in range(5)]
        true = sum(d.sum() for _, d in big) / sum(b.sum() for b, _ in big)
        for n in COUNTS:
            samples, covered, above = (4000 if n <= 1000 else 1000), {}, {}
            for _ in range(samples // 250):
                base, difference = draw(rng, (250, n))
                for kind, bound in bounds(base, difference, rng).items():
                    covered.setdefault(kind, []).extend(bound >= true)
                    above.setdefault(kind, []).extend(bound - true)
            row = {
                "population": name,
                "documents": n,
                "coverage": {k: round(float(np.mean(v)), 4) for k, v in covered.items()},
                "median_distance_in_budgets": {k: round(float(np.median(v)) / BUDGET, 4) for k, v in above.items()},
            }
            table.append(row)
            print(name, n, row["coverage"], flush=True)
    Path(out).write_text(
        json.dumps({"level": LEVEL, "budget": BUDGET, "rows": table}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
