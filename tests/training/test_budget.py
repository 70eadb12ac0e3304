"""Bounds on known cases, and the walk up the fixed sequence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from blockexpand.errors import TrainingError
from blockexpand.training.budget import (
    LEAST_DOCUMENTS,
    SCALES,
    DocumentSums,
    Measured,
    rise_of,
    scales_around,
    state,
    walk_up,
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


def test_the_walk_ends_at_the_first_failure() -> None:
    seen: list[float] = []

    def measure(scale: float) -> Measured:
        seen.append(scale)
        rise = {0.25: 0.001, 0.5: 0.002, 0.75: 0.02, 1.0: 0.0}[scale]  # 1.0 would pass, and is not reached
        return Measured(texts={"prose": risen(rise)}, domain_loss=3 - scale)

    found = walk_up({"prose": BASE}, {"prose": 0.01}, measure, scales=(0.25, 0.5, 0.75, 1.0))
    assert seen == [0.25, 0.5, 0.75]
    assert found.scale == 0.5
    assert found.holds
    assert [one.inside for one in found.tried] == [True, True, False]
    assert found.texts[0].rise == pytest.approx(0.002)


def test_the_domain_chooses_among_scales_that_pass() -> None:
    losses = {0.5: 2.0, 1.0: 1.5, 1.5: 1.7}
    found = walk_up(
        {"prose": BASE},
        {"prose": 0.01},
        lambda scale: Measured(texts={"prose": risen(0.001 * scale)}, domain_loss=losses[scale]),
        scales=tuple(losses),
    )
    assert found.scale == 1.0
    assert found.texts[0].rise == pytest.approx(0.001)


def test_a_scale_passes_only_where_every_text_does() -> None:
    rises = {"prose": 0.004, "chats": 0.008}

    def measure(scale: float) -> Measured:
        return Measured(texts={text: risen(scale**2 * rise) for text, rise in rises.items()}, domain_loss=None)

    both = {"prose": BASE, "chats": BASE}
    assert walk_up(both, {"prose": 0.01, "chats": 0.02}, measure, scales=(0.5, 1.0)).scale == 1.0
    assert walk_up(both, {"prose": 0.01, "chats": 0.006}, measure, scales=(0.5, 1.0)).scale == 0.5


def test_where_nothing_passes_the_base_is_shipped_and_what_was_seen_is_said() -> None:
    far = Measured(texts={"prose": risen(0.03)}, domain_loss=1.0)
    found = walk_up({"prose": BASE}, {"prose": 0.01}, lambda _: far, scales=(0.5, 1.0))
    assert found.scale == 0
    assert not found.holds
    assert found.texts[0].rise == pytest.approx(0.03)
    assert found.texts[0].documents_needed is None


def test_a_run_that_is_outside_is_tried_around_the_scale_that_its_steering_rows_foresee() -> None:
    assert scales_around(0.7) == SCALES
    assert scales_around(4.0) == tuple(scale / 2 for scale in SCALES)
    assert min(scales_around(1e9)) > 0


def test_a_loss_that_is_no_number_is_outside() -> None:
    found = state({"prose": BASE}, {"prose": np.where(np.arange(NUM) == 7, np.nan, BASE.losses_N)}, {"prose": 0.5})
    assert not found.holds
    assert found.texts[0].rise is None
