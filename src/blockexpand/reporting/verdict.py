"""The verdict of a comparison in one sentence, by rules that are stated on the page.

In: a finished comparison. Out: the sentence, what came out in a word, and how the first arm stands to the
unrestricted reference. Nothing is called better unless the paired 95 % interval of the difference excludes
zero; a budget is kept when the mean forgetting on the test documents is not above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockexpand.records.comparison import ArmResult, Comparison
from blockexpand.reporting import formats
from blockexpand.reporting.methods import Method, methods_of
from blockexpand.reporting.tables import Spread, interval, spread_of

Outcome = Literal[
    "better",
    "worse",
    "noise",
    "trade",
    "only ours kept the budget",
    "budget broken",
    "none kept the budget",
    "alone",
    "nothing inside",
]
_TONES: dict[Outcome, str] = {
    "better": "good",
    "only ours kept the budget": "good",
    "noise": "quiet",
    "trade": "quiet",
    "alone": "plain",
}

RULES = (
    "The first method of the recipe is compared with one other: of those that kept the budget, the one that gained "
    "most; if none kept it, the one that forgot least; without a budget, the one that gained most. References that "
    "were trained without limits are left out of this choice.",
    "A budget is kept when the mean forgetting on the test documents is not above it.",
    "Two methods that both kept the budget are told apart by the paired difference of their domain losses on the same "
    "test documents. One is called better only if the 95 % interval of that difference excludes zero.",
    "Without a budget one is called better only if it gained more and did not forget more, or gained no less and "
    "forgot less, each by an interval that excludes zero.",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison says."""

    outcome: Outcome
    """For the first arm of the recipe."""
    sentence: str
    reference: str
    """A second sentence: the share of the unrestricted reference's gain; empty without a reference."""

    @property
    def tone(self) -> str:
        """good, bad, quiet or plain."""
        return _TONES.get(self.outcome, "bad")


def keeps_budget(arm: ArmResult, budget: float | None) -> bool:
    """Whether an arm forgot no more than the budget allows; without a budget every arm keeps it."""
    return budget is None or arm.forgetting.mean <= budget


def verdict(comparison: Comparison) -> Verdict:
    """Judge the first arm of a comparison against the best of the others.

    Args:
        comparison: a finished comparison, as `compare` returns it or `read_comparison` reads it.
    """
    methods = methods_of(comparison.recipe)
    budget = comparison.recipe.retention.forgetting_budget
    ours = comparison.arms[0]
    if comparison.kept_nothing:
        words = "Nothing inside the budget: every method shipped the base as it was, so there is nothing to compare. "
        advice = "Allow more forgetting, give more weight to general text, or train less."
        return Verdict(outcome="nothing inside", sentence=words + advice, reference="")
    rivals = [arm for arm in comparison.arms[1:] if not arm.unrestricted]
    rival = _rival(rivals, budget)
    start = _result_of(ours, methods[ours.name].name, budget)
    outcome, end = ("alone", "") if rival is None else _against(comparison, rival, methods)
    return Verdict(outcome=outcome, sentence=f"{start}{end}.", reference=_reference(comparison, methods))


def _rival(rivals: list[ArmResult], budget: float | None) -> ArmResult | None:
    kept = [arm for arm in rivals if keeps_budget(arm, budget)]
    if kept:
        return max(kept, key=lambda arm: arm.gain.mean)
    return min(rivals, key=lambda arm: arm.forgetting.mean, default=None)


def _learnt(arm: ArmResult, unit: str = "") -> str:
    gain = spread_of(arm.gain)
    if gain.is_noise:
        return f"learnt nothing that can be told from zero ({_figure(gain)}{unit})"
    verb = "learnt" if gain.value > 0 else "got worse by"
    return f"{verb} {formats.loss(abs(gain.value))}{unit}"


def _figure(figure: Spread) -> str:
    return f"{formats.difference(figure.value)}, 95 % interval {interval('difference', figure)}"


def _result_of(arm: ArmResult, name: str, budget: float | None) -> str:
    """`Block expansion learnt 0.612 nats per token of domain text at +0.42 % general loss, inside ...`."""
    told = _learnt(arm, " nats per token of domain text")
    return f"{name} {told} at {formats.rise(arm.forgetting.mean)} general loss{_kept(arm, budget)}"


def _kept(arm: ArmResult, budget: float | None) -> str:
    if budget is None:
        return ""
    words = f"the {formats.budget(budget)} budget"
    if not keeps_budget(arm, budget):
        return f", over {words}"
    if arm.forgetting.high > budget:
        return f", inside {words} (its interval reaches {formats.rise(arm.forgetting.high)})"
    return f", inside {words}"


def _against(comparison: Comparison, rival: ArmResult, methods: dict[str, Method]) -> tuple[Outcome, str]:
    budget = comparison.recipe.retention.forgetting_budget
    ours, name = comparison.arms[0], methods[rival.name].inside
    figures = f"{_learnt(rival)} at {formats.rise(rival.forgetting.mean)}"
    kept, rival_kept = keeps_budget(ours, budget), keeps_budget(rival, budget)
    if not kept and not rival_kept:
        return "none kept the budget", f", and no method kept it: {name}, which forgot least of the others, {figures}"
    if not rival_kept:
        words = f"; of the methods compared only this one kept the budget: {name}, the nearest to it, {figures}"
        return "only ours kept the budget", words
    retention = comparison.recipe.retention
    retains = retention.replay > 0 or retention.kl_weight > 0
    equal = "with the same retention" if retains else "on the same tokens"
    if not kept:
        return "budget broken", f", which {name} {equal} kept: it {figures}"
    outcome, words = _told_apart(comparison, rival, methods)
    return outcome, f"; {name} {equal} {figures}{words}"


def _told_apart(comparison: Comparison, rival: ArmResult, methods: dict[str, Method]) -> tuple[Outcome, str]:
    """The paired test of two methods that may be compared."""
    contrast = next((c for c in comparison.contrasts if c.theirs == rival.name), None)
    assert contrast is not None, f"the comparison has no contrast with {rival.name}"
    learnt, forgot = spread_of(contrast.domain, -1), spread_of(contrast.general)
    ours, theirs = methods[comparison.arms[0].name].inside, methods[rival.name].inside
    noise = f": no difference that the test documents can tell (paired difference {_figure(learnt)})"
    first = f", so {ours} is better here"
    second = ", and is better here"
    by_gain = f" (paired difference {_figure(learnt)})"
    if comparison.recipe.retention.forgetting_budget is not None:
        if learnt.is_noise:
            return "noise", noise
        return ("better", first + by_gain) if learnt.value > 0 else ("worse", second + by_gain)
    signs = {_sign(learnt), -_sign(forgot)}
    if signs == {0}:
        return "noise", noise
    if signs == {1, -1}:
        more, less = (ours, theirs) if learnt.value > 0 else (theirs, ours)
        return "trade", f": {more} learnt more and forgot more than {less}, so without a budget neither is better"
    why = f"; it forgot less (paired difference of the general loss {_figure(forgot)})" if learnt.is_noise else by_gain
    return ("better", first + why) if 1 in signs else ("worse", second + why)


def _sign(figure: Spread) -> int:
    return 0 if figure.is_noise else 1 if figure.value > 0 else -1


def _reference(comparison: Comparison, methods: dict[str, Method]) -> str:
    ours = comparison.arms[0]
    reference = next((arm for arm in comparison.arms if arm.unrestricted), None)
    if reference is None or ours.unrestricted or ours.gain_over_reference is None or reference.gain.mean <= 0:
        return ""
    return (
        f"The gain of {methods[ours.name].inside} is {formats.share(ours.gain_over_reference)} of the "
        f"{formats.loss(reference.gain.mean)} nats per token that {methods[reference.name].inside}, learnt from the "
        f"same domain tokens, at {formats.rise(reference.forgetting.mean)} general loss."
    )
