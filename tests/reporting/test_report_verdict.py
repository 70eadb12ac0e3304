"""The verdict: its words for every way a comparison can fall, and nothing claimed without an interval."""

from __future__ import annotations

import dataclasses

import pytest
from report_examples import ARMS, Arm, comparison_of

from blockexpand.reporting import verdict

OURS = Arm(name="blocks", gain=0.612, forgetting=0.004, half=0.014)


def judged(*others: Arm, ours: Arm = OURS, budget: float | None = 0.01) -> tuple[str, str]:
    found = verdict(comparison_of((ours, *others), budget=budget))
    return found.outcome, found.sentence


def test_better() -> None:
    outcome, sentence = judged(Arm(name="full", gain=0.551, forgetting=0.008, difference=0.061))
    assert outcome == "better"
    assert sentence == (
        "Block expansion learnt 0.612 nats per token of domain text at +0.40 % general loss, inside the 1 % budget; "
        "full fine-tuning with the same retention learnt 0.551 at +0.80 %, so block expansion is better here (paired "
        "difference +0.061, 95 % interval +0.051 to +0.071)."
    )


def test_worse() -> None:
    outcome, sentence = judged(Arm(name="full", gain=0.7, forgetting=0.008, difference=-0.088))
    assert outcome == "worse"
    assert sentence.endswith(
        "; full fine-tuning with the same retention learnt 0.700 at +0.80 %, and is better here (paired difference "
        "\u22120.088, 95 % interval \u22120.098 to \u22120.078)."
    )


@pytest.mark.parametrize("difference", [0.009, -0.009, 0.0])
def test_noise_is_never_called_better(difference: float) -> None:
    outcome, sentence = judged(Arm(name="lora", gain=0.612, forgetting=0.008, difference=difference))
    assert outcome == "noise"
    assert ": no difference that the test documents can tell (paired difference " in sentence
    assert "better" not in sentence


def test_an_interval_without_width_is_noise() -> None:
    # One document, or equal ones: a bootstrap of them has no width and must not read as certainty.
    outcome, _ = judged(Arm(name="full", gain=0.5, forgetting=0.008, difference=0.1, half=0.0))
    assert outcome == "noise"


def test_the_strongest_of_those_inside_the_budget_is_the_rival() -> None:
    _, sentence = judged(
        Arm(name="lora", gain=0.47, forgetting=0.008, difference=0.14),
        Arm(name="full", gain=0.58, forgetting=0.009, difference=0.03),
        Arm(name="old-blocks", gain=0.9, forgetting=0.02, difference=-0.3),
    )
    assert "; full fine-tuning with the same retention learnt 0.580 at +0.90 %" in sentence


def test_budget_broken_by_ours() -> None:
    ours = dataclasses.replace(OURS, forgetting=0.013)
    outcome, sentence = judged(Arm(name="full", gain=0.551, forgetting=0.008, difference=0.061), ours=ours)
    assert outcome == "budget broken"
    assert sentence == (
        "Block expansion learnt 0.612 nats per token of domain text at +1.30 % general loss, over the 1 % budget, "
        "which full fine-tuning with the same retention kept: it learnt 0.551 at +0.80 %."
    )


def test_budget_kept_by_ours_alone() -> None:
    outcome, sentence = judged(
        Arm(name="full", gain=0.7, forgetting=0.03, difference=-0.1),
        Arm(name="lora", gain=0.4, forgetting=0.012, difference=0.2),
    )
    assert outcome == "only ours kept the budget"
    assert "only this one kept the budget: LoRA, the nearest to it, learnt 0.400 at +1.20 %." in sentence
    assert "better" not in sentence


def test_budget_kept_by_nobody() -> None:
    ours = dataclasses.replace(OURS, forgetting=0.013)
    outcome, sentence = judged(Arm(name="full", gain=0.7, forgetting=0.03), ours=ours)
    assert outcome == "none kept the budget"
    assert ", over the 1 % budget, and no method kept it: full fine-tuning, which forgot least of" in sentence


def test_a_budget_kept_only_on_the_mean_says_so() -> None:
    ours = dataclasses.replace(OURS, forgetting=0.0095)
    _, sentence = judged(Arm(name="full", gain=0.5, forgetting=0.008, difference=0.1), ours=ours)
    assert "inside the 1 % budget (its interval reaches +1.37 %)" in sentence


@pytest.mark.parametrize(
    ("other", "outcome", "words"),
    [
        (Arm(name="full", gain=0.5, forgetting=0.03, difference=0.1), "better", "so block expansion is better here"),
        (
            Arm(name="full", gain=0.5, forgetting=-0.03, difference=0.1),
            "trade",
            "so without a budget neither",
        ),
        (Arm(name="full", gain=0.9, forgetting=-0.03, difference=-0.3), "worse", "and is better here"),
        (Arm(name="full", gain=0.6, forgetting=0.03, difference=0.001), "better", "it forgot less"),
        (Arm(name="full", gain=0.6, forgetting=0.004, difference=0.001), "noise", "no difference"),
    ],
)
def test_without_a_budget_both_must_agree(other: Arm, outcome: str, words: str) -> None:
    found, sentence = judged(other, budget=None)
    assert found == outcome
    assert words in sentence
    assert "1 % budget" not in sentence


def test_nothing_learnt_and_worse_than_before() -> None:
    _, sentence = judged(ours=dataclasses.replace(OURS, gain=0.003))
    assert sentence.startswith(
        "Block expansion learnt nothing that can be told from zero (+0.003, 95 % interval \u22120.011 to +0.017 nats"
    )
    _, sentence = judged(ours=dataclasses.replace(OURS, gain=-0.2))
    assert sentence.startswith("Block expansion got worse by 0.200 nats per token of domain text at +0.40 %")


def test_one_method_alone() -> None:
    assert judged()[0] == "alone"


def test_the_share_of_the_reference() -> None:
    found = verdict(comparison_of())
    assert found.reference == (
        "The gain of block expansion is 82 % of the 0.742 nats per token that full fine-tuning, unrestricted, learnt "
        "from the same domain tokens, at +38.6 % general loss."
    )
    assert verdict(comparison_of(ARMS[:2])).reference == ""
