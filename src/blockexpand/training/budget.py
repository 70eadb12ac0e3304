"""The budget as a contract: how much general loss rose at most, and how much of what was learnt stays inside.

In: per-document sums of loss, of the base and of the model, on documents that steered nothing. Out: an upper confidence
bound of the rise; and the largest scale of what was learnt at which that bound is inside the budget.
Knows neither torch nor files. Refused: fewer documents than the bound's level stands for.

The rise is one of sums, sum(now) / sum(base) - 1: documents are the units, weighed by their tokens. The more of what
was learnt is put on the model, the larger its rise and the bound of it; where this is so, looking at several scales
costs nothing of the level, in whatever order they are looked at (risk-controlling sets: Bates et al. 2021, arXiv
2101.02703, section 2.3). Let s be the smallest scale that is truly outside. One that is larger passes only if the bound
at s is inside, too, which it is with probability 1 - level at most. That the bound rises is an assumption: every look
is in the record, a scale that failed below one that passed ends the search, and nothing above it is shipped. It was
seen to waver by 8 % of itself (full fine-tuning); simulated, so much costs no level that shows (docs/log.md). With
several kinds of text a scale passes only where all of them do: if one is outside at s, its own bound has to fail to see
it, so the level holds for all together, uncorrected (Berger 1982).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from blockexpand.errors import TrainingError
from blockexpand.records.budget import BudgetStatement, ScaleTried, TextKept

# N = documents.

LEVEL = 0.95
METHOD = "Student's t of the ratio over documents, the worst of them counted three times more"
_WORST_COUNTS = 3
"""Of what was tried, the tightest that covers where rises are skewed (studies/budget/README.md): with 50 lognormal
documents it covers 0.97 of samples where Student's t covers 0.86 and the studentised bootstrap 0.89."""
LEAST_DOCUMENTS = 50
"""With fewer the bound covers less often than its level says where one document in twenty rises much (the same)."""
_SMALLEST_AIM = 0.05
_MOST_LOOKS = 6
_MARGIN = 0.97
"""Of the scale at which a bound that grows with the scale's square would be the budget: what is looked at next."""
_WORTH = 1.06
"""A larger scale is looked at only if it is larger by this: a look costs a pass over all the documents."""
_LARGEST = 1.5
"""Beyond what was trained, what is put on is a guess: only as far as that."""
_MOST_NEEDED = 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSums:
    """One kind of general text, document by document."""

    losses_N: np.ndarray
    """Cross-entropy summed over a document's counted tokens, nats, float64 [N]."""
    tokens_N: np.ndarray
    """How many of its tokens count, int64 [N]; at least one each."""

    def __post_init__(self) -> None:
        """Check that they belong together."""
        assert self.losses_N.shape == self.tokens_N.shape, f"{self.losses_N.shape} is not {self.tokens_N.shape}"
        assert (self.tokens_N > 0).all(), "a document without a token that counts"

    @property
    def mean(self) -> float:
        """Nats a token."""
        return float(self.losses_N.sum() / self.tokens_N.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a scale gives."""

    texts: Mapping[str, np.ndarray]
    """Of each kind of text the documents' losses now, in the base's order, float64 [N]."""
    domain_loss: float | None
    """On the domain's steering rows, nats a token: chooses among the scales that pass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rise:
    """How much a loss rose, as shares of the base's."""

    mean: float
    spread: float
    """Standard deviation of one document's part in it: the mean's error is spread / sqrt(N)."""
    worst: float
    """How far the worst document stands above the mean, in the same unit."""
    num_documents: int

    def bound(self, num_documents: int | None = None, level: float = LEVEL) -> float:
        """The upper bound at a level; with `num_documents`, as it would be with so many like these.

        Student's t, as if the worst document had been drawn three times more: what a sample of a skewed population
        misses is its tail, and this puts a piece of it back, at a cost that falls as 1/N.
        """
        n = self.num_documents if num_documents is None else num_documents
        more = n + _WORST_COUNTS
        squares = (n - 1) * self.spread**2 + _WORST_COUNTS * self.worst**2 * n / more
        error = math.sqrt(squares / (more - 1) / more)
        return self.mean + _WORST_COUNTS * self.worst / more + float(stats.t.ppf(level, more - 1)) * error

    def documents_needed(self, budget: float, level: float = LEVEL) -> int | None:
        """The least number of documents, with this mean and spread, whose bound is the budget; None: no number's."""
        if not self.mean < budget:
            return None
        low, high = 1, LEAST_DOCUMENTS
        while self.bound(high, level) > budget:
            low, high = high, 2 * high
            if high > _MOST_NEEDED:
                return None
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.bound(middle, level) <= budget else (middle, high)
        return max(high, LEAST_DOCUMENTS)


def scale_inside(used: float) -> float:
    """The scale at which a run is foreseen to be inside, by the share of the budget that it uses as it is.

    The rise grows with the square of what is written.
    """
    return 1.0 if used <= 1 else max(used**-0.5, _SMALLEST_AIM)


def rise_of(base_N: np.ndarray, now_N: np.ndarray) -> Rise:
    """How much the loss of documents rose; both are sums over each document, nats [N].

    Raises:
        TrainingError: the base's loss is no positive number, or there are fewer than two documents.
    """
    n, total = len(base_N), float(base_N.sum())
    if n < 2 or not total > 0:
        raise TrainingError(
            f"the base's loss on {n} documents of general text is {total:g} nats; expected 2 documents or more, and a "
            "loss above 0; give more general text"
        )
    mean = float(now_N.sum()) / total - 1
    # What each document adds to the ratio, by how much that moves when the document is left out (the jackknife): the
    # residual alone is near 0 for a document with most of the tokens, because the ratio is then that document's.
    parts_N = (now_N - (1 + mean) * base_N) * n / (total - base_N)
    return Rise(mean=mean, spread=float(parts_N.std(ddof=1)), worst=float(parts_N.max()), num_documents=n)


def state(
    base: Mapping[str, DocumentSums],
    now: Mapping[str, np.ndarray],
    budgets: Mapping[str, float],
    *,
    level: float = LEVEL,
    scale: float | None = None,
    tried: Sequence[ScaleTried] = (),
) -> BudgetStatement:
    """What can be promised of a model as it is.

    Args:
        base: Of each kind of text the base's documents.
        now: The same documents' losses under the model, sums in nats [N].
        budgets: How much each may rise, as a share.
        level: The level of confidence, for all kinds together.
        scale: What was learnt was multiplied by it; None where nothing was.
        tried: The scales that were looked at on the way.

    Raises:
        TrainingError: as `rise_of`.
    """
    kept = []
    for text, documents in base.items():
        known = {"text": text, "budget": budgets[text], "num_tokens": int(documents.tokens_N.sum())}
        if not np.isfinite(now[text]).all():
            num_documents = len(documents.losses_N)
            kept.append(TextKept(**known, num_documents=num_documents, rise=None, bound=None, documents_needed=None))
            continue
        rise = rise_of(documents.losses_N, now[text])
        enough = rise.num_documents >= LEAST_DOCUMENTS
        kept.append(
            TextKept(
                **known,
                num_documents=rise.num_documents,
                rise=rise.mean,
                bound=rise.bound(level=level) if enough else None,
                documents_needed=rise.documents_needed(budgets[text], level),
            )
        )
    return BudgetStatement(
        level=level,
        method=METHOD,
        least_documents=LEAST_DOCUMENTS,
        scale=scale,
        texts=tuple(kept),
        tried=tuple(tried),
    )


def find_scale(
    base: Mapping[str, DocumentSums],
    budgets: Mapping[str, float],
    measure: Callable[[float], Measured],
    *,
    aim: float,
    level: float = LEVEL,
) -> BudgetStatement:
    """Look for the largest scale inside, and choose among those that passed.

    Of these the one with the lowest domain loss is chosen (the largest, where the domain is not measured). Scale 0 in
    the statement: none passed, so the base is all that can be shipped; its texts say what was seen at the smallest.

    Args:
        base: Of each kind of text the base's documents.
        budgets: How much each may rise, as a share.
        measure: Puts a scale on the model and measures it.
        aim: The scale to look at first.
        level: The level of confidence.

    Raises:
        TrainingError: as `rise_of`.
    """
    looks: dict[float, tuple[BudgetStatement, float | None]] = {}
    scale: float | None = float(f"{aim:.3g}")
    while scale is not None and len(looks) < _MOST_LOOKS:
        measured = measure(scale)
        looks[scale] = state(base, measured.texts, budgets, level=level, scale=scale), measured.domain_loss
        scale = _next_scale({scale: found for scale, (found, _) in looks.items()})
    tried = tuple(
        ScaleTried(
            scale=scale,
            rises={kept.text: kept.rise for kept in found.texts},
            bounds={kept.text: kept.bound for kept in found.texts},
            inside=found.holds,
            domain_loss=domain_loss,
        )
        for scale, (found, domain_loss) in looks.items()
    )
    outside = min((one.scale for one in tried if not one.inside), default=math.inf)
    passed = sorted((one for one in tried if one.scale < outside), key=lambda one: one.scale)
    if not passed:
        return dataclasses.replace(looks[outside][0], scale=0.0, tried=tried)
    if all(one.domain_loss is not None for one in passed):
        passed.sort(key=lambda one: -(one.domain_loss or 0.0))
    return dataclasses.replace(looks[passed[-1].scale][0], tried=tried)


def _next_scale(looks: Mapping[float, BudgetStatement]) -> float | None:
    """What to look at after some looks; None: nothing is worth another one."""
    largest_inside = max((scale for scale, found in looks.items() if found.holds), default=0.0)
    smallest_outside = min((scale for scale, found in looks.items() if not found.holds), default=math.inf)
    if largest_inside > smallest_outside:
        return None  # the bound has fallen somewhere
    *_, (scale, found) = looks.items()
    bounds = [(kept.bound, kept.budget) for kept in found.texts]
    shares = [budget / bound for bound, budget in bounds if bound is not None and bound > 0]
    room = min((_MARGIN * math.sqrt(share) for share in shares), default=_LARGEST / scale)
    if any(bound is None for bound, _ in bounds):  # no number, or too few documents at any scale
        room = min(room, 0.5)
    following = float(f"{min(scale * room, _LARGEST):.3g}")
    if not largest_inside:
        return following if following < smallest_outside else None
    return following if largest_inside * _WORTH < following < smallest_outside else None
