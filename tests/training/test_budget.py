"""Bounds on known cases, and the search for the largest scale inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from blockexpand.errors import TrainingError
from blockexpand.training.budget import (
    LEAST_DOCUMENTS,
    DocumentSums,
    Measured,
    find_scale,
    rise_of,
    scale_inside,
    state,
)

NUM = 400
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(20, 200, NUM)
BASE = DocumentSums(losses_N=TOKENS * 3.0, tokens_N=TOKENS)
SPREAD = RNG.normal(0, 0.01, NUM)


def risen(mean: float, documents: int = NUM) -> np.ndarray:
    """The documents' losses after a rise."""
    base = BASE.losses_N[:documents]
    spread = SPREAD[:documents] - (SPREAD[:documents] * base).sum() / base.sum()
    return base * (1 + mean + spread)


def test_a_rise_is_one_of_sums_and_its_error_is_over_documents() -> None:
    rise = rise_of(BASE.losses_N, risen(0.004))
    assert rise.mean == pytest.approx(0.004)
    total = BASE.losses_N.sum()
    left_out = (risen(0.004).sum() - risen(0.004)) / (total - BASE.losses_N) - 1
    parts = NUM * (rise.mean - left_out)
    assert rise.spread == pytest.approx(parts.std(ddof=1), rel=0.01)
    student = rise.mean + stats.t.ppf(0.95, NUM - 1) * rise.spread / np.sqrt(NUM)
    # Wider than Student's bound by what the worst documents stand for, and by little more.
    assert student < rise.bound() < student + 5 * rise.worst / NUM


def test_documents_that_all_rise_alike_have_the_rise_as_their_bound() -> None:
    assert rise_of(BASE.losses_N, BASE.losses_N * 1.02).bound() == pytest.approx(0.02)


def test_one_long_document_is_no_sample() -> None:
    """400 documents of which one has nearly all the tokens say as little as one."""
    base = BASE.losses_N.copy()
    base[0] = 1e7
    even, uneven = (rise_of(b, b * (1 + SPREAD)) for b in (BASE.losses_N, base))
    assert uneven.bound() - uneven.mean > 5 * (even.bound() - even.mean)


def test_the_bound_covers_on_a_skewed_population() -> None:
    rng = np.random.default_rng(5)
    covered, samples = 0, 400
    for _ in range(samples):
        tokens = np.clip(rng.lognormal(5, 0.8, 100), 16, 1024)
        now = 3 * tokens * (1 + 0.01 * rng.lognormal(0, 1, 100))
        covered += rise_of(3 * tokens, now).bound() >= 0.01 * np.exp(0.5)
    # 0.95 less three standard errors; Student's t covers 0.87 here.
    assert covered / samples > 0.95 - 3 * np.sqrt(0.05 * 0.95 / samples)


def test_the_documents_needed_bring_the_bound_to_the_budget() -> None:
    rise = rise_of(BASE.losses_N, risen(0.004))
    needed = rise.documents_needed(0.005)
    assert needed is not None
    assert rise.bound(needed) <= 0.005 < rise.bound(needed - 1)
    assert rise.documents_needed(0.5) == LEAST_DOCUMENTS
    assert rise.documents_needed(0.004) is None
    assert rise.documents_needed(0.003) is None


def test_too_few_documents_promise_nothing_and_say_how_many_would() -> None:
    few = LEAST_DOCUMENTS - 1
    base = DocumentSums(losses_N=BASE.losses_N[:few], tokens_N=TOKENS[:few])
    (kept,) = state({"prose": base}, {"prose": risen(0.0, few)}, {"prose": 0.5}).texts
    assert kept.bound is None
    assert not kept.inside
    assert kept.documents_needed == LEAST_DOCUMENTS


@pytest.mark.parametrize("base", [np.zeros(40), np.full(40, np.nan), np.ones(1)])
def test_a_base_without_a_loss_is_refused(base: np.ndarray) -> None:
    with pytest.raises(TrainingError, match=r"0 nats|nan nats|1 documents"):
        rise_of(base, base)


def quadratic(rise: float) -> Callable[[float], Measured]:
    """A model whose rise grows with the square of the scale, and whose gain grows with it."""
    now = risen(rise) - BASE.losses_N
    return lambda scale: Measured(texts={"prose": BASE.losses_N + scale**2 * now}, domain_loss=3 - scale)


@pytest.mark.parametrize("rise", [0.002, 0.009, 0.02, 0.5, 3.0])
@pytest.mark.parametrize("aim", [0.05, 0.4, 1.0])
def test_the_scale_found_is_close_to_the_largest_inside(rise: float, aim: float) -> None:
    budgets = {"prose": 0.01}
    found = find_scale({"prose": BASE}, budgets, quadratic(rise), aim=aim)
    assert found.holds
    assert found.scale is not None
    # Nothing is put on more than half again, and nothing that was inside is passed over for less.
    if found.scale < 1.4:
        beyond = quadratic(rise)(min(found.scale * 1.1, 1.5)).texts
        assert not state({"prose": BASE}, beyond, budgets).holds
    assert found.scale == max(one.scale for one in found.tried if one.inside)
    assert len(found.tried) <= 6


def test_nothing_above_a_scale_that_failed_is_shipped() -> None:
    rises = iter([0.004, 0.02, 0.001])  # inside at 1, then outside at a smaller scale: the bound has fallen somewhere

    def measure(scale: float) -> Measured:
        return Measured(texts={"prose": risen(next(rises))}, domain_loss=3 - scale)

    found = find_scale({"prose": BASE}, {"prose": 0.01}, measure, aim=0.6)
    assert [one.inside for one in found.tried][:2] == [True, False]
    assert found.scale == 0.6


def test_the_domain_chooses_among_scales_that_pass() -> None:
    found = find_scale(
        {"prose": BASE},
        {"prose": 0.01},
        lambda scale: Measured(texts={"prose": risen(0.001 * scale)}, domain_loss=abs(scale - 1)),
        aim=1.0,
    )
    assert [one.scale for one in found.tried] == [1.0, 1.5]
    assert all(one.inside for one in found.tried)
    assert found.scale == 1.0
    assert found.texts[0].rise == pytest.approx(0.001)


def test_a_scale_passes_only_where_every_text_does() -> None:
    rises = {"prose": 0.004, "chats": 0.008}

    def measure(scale: float) -> Measured:
        return Measured(texts={text: risen(scale**2 * rise) for text, rise in rises.items()}, domain_loss=None)

    both = {"prose": BASE, "chats": BASE}
    wide, narrow = (
        find_scale(both, {"prose": 0.01, "chats": chats}, measure, aim=1.0).scale for chats in (0.02, 0.006)
    )
    assert wide is not None
    assert narrow is not None
    assert 1.0 < wide < np.sqrt(0.01 / 0.004)  # prose ends it
    assert 0.5 < narrow < np.sqrt(0.006 / 0.008)  # chats do


def test_where_nothing_passes_the_base_is_shipped_and_what_was_seen_is_said() -> None:
    far = Measured(texts={"prose": risen(0.03)}, domain_loss=1.0)
    found = find_scale({"prose": BASE}, {"prose": 0.01}, lambda _: far, aim=1.0)
    assert found.scale == 0
    assert not found.holds
    assert found.texts[0].rise == pytest.approx(0.03)
    assert found.texts[0].documents_needed is None
    scales = [one.scale for one in found.tried]
    assert scales == sorted(scales, reverse=True)


def test_a_run_that_is_outside_is_looked_at_first_where_its_steering_rows_foresee_it_inside() -> None:
    assert scale_inside(0.7) == 1.0
    assert scale_inside(4.0) == 0.5
    assert scale_inside(1e9) > 0


@pytest.mark.parametrize(("worst", "waver"), [(1.0, 0.0), (8.0, 0.0), (1.0, 0.08)])
def test_the_search_ships_what_is_outside_no_more_often_than_the_level_says(worst: float, waver: float) -> None:
    """Many looks, in an order that the documents themselves have chosen, at a level of 0.95.

    `waver`: by how much the population's own rise strays from growing with the scale.
    """
    rng = np.random.default_rng(3)
    runs, broken = 300, 0
    for _ in range(runs):
        parts = 0.02 * rng.lognormal(0, 0.7, 80) * np.where(rng.random(80) < 0.05, worst, 1.0)
        mean = 0.02 * np.exp(0.7**2 / 2) * (1 + 0.05 * (worst - 1))
        base = DocumentSums(losses_N=np.full(80, 300.0), tokens_N=np.full(80, 100))
        true = {0.0: 0.0}

        def measure(scale: float, parts: np.ndarray = parts, mean: float = mean, true: Any = true) -> Measured:
            grown = scale**2 * (1 + waver * rng.normal())
            true[scale] = grown * mean
            return Measured(texts={"prose": 300 * (1 + grown * parts)}, domain_loss=None)

        found = find_scale({"prose": base}, {"prose": 0.01}, measure, aim=1.0)
        broken += true[found.scale or 0.0] > 0.01
    assert broken / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_loss_that_is_no_number_is_outside() -> None:
    found = state({"prose": BASE}, {"prose": np.where(np.arange(NUM) == 7, np.nan, BASE.losses_N)}, {"prose": 0.5})
    assert not found.holds
    assert found.texts[0].rise is None
