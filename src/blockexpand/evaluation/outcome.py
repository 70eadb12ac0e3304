"""What an arm learnt and what it lost: its losses beside the base's, on test documents that steered nothing.

In: a model's folder and prepared corpora (`domain`, and general text under any other names); a run's record. Out: the
losses of each document, and `Learnt`, with the interval of the gain and the statement about the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from blockexpand.corpus import open_corpus
from blockexpand.evaluation.held_out import document_losses
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device, training_dtype
from blockexpand.records.evaluation import DocumentLosses
from blockexpand.records.intervals import ratio_difference
from blockexpand.records.learn import ALL_TEXT, Arm, Learnt
from blockexpand.records.run import RunRecord
from blockexpand.training.budget import DocumentSums, state

DOMAIN = "domain"
_ROWS_PER_PASS = 4
_LEAST_PAIRS = 8
"""Test documents; fewer cannot carry an interval."""


def measure_texts(
    model: Path, corpora: Mapping[str, Path], name: str, device: str = "auto", split: str = "test"
) -> dict[str, DocumentLosses]:
    """The losses of each document of a split of each corpus, in the arithmetic that a run would have here.

    Args:
        model: The folder of a checkpoint.
        corpora: Prepared folders by name.
        name: What the model is called on the way.
        device: Where it runs.
        split: Which split.

    Raises:
        LiveError: the model cannot be loaded.
    """
    where = choose_device(device)
    loaded = cast(Any, load_model(model, dtype=training_dtype("auto", model, where), device=str(where)))
    return {
        text: document_losses(loaded, open_corpus(folder).rows(split), _ROWS_PER_PASS, f"{name} on {text} text")
        for text, folder in corpora.items()
    }


def learnt_by(
    arm: Arm,
    run: RunRecord,
    losses: tuple[Mapping[str, DocumentLosses], Mapping[str, DocumentLosses]],
    keep: Mapping[str, float],
    *,
    bypass_is_base: bool | None,
) -> Learnt:
    """What came of a run; `losses` are the base's and its model's."""
    base, now = losses
    before, after = base[DOMAIN], now[DOMAIN]
    gain = ratio_difference(before.nats_M, after.nats_M, before.tokens_M)
    told = len(before.nats_M) >= _LEAST_PAIRS
    kept = {
        text: DocumentSums(losses_N=one.nats_M, tokens_N=one.tokens_M) for text, one in base.items() if text != DOMAIN
    }
    budgets = {text: keep.get(text, keep.get(ALL_TEXT, 1.0)) for text in kept}
    return Learnt(
        arm=arm,
        lr=run.settings.optimizer.lr,
        num_trained=run.num_trainable_parameters,
        num_steps=run.num_steps,
        domain_before=float(before.nats_M.sum() / before.tokens_M.sum()),
        domain_after=float(after.nats_M.sum() / after.tokens_M.sum()),
        gain_low=gain.low if told else None,
        gain_high=gain.high if told else None,
        num_test_documents=len(before.nats_M),
        budget=state(kept, {text: now[text].nats_M for text in kept}, budgets),
        bypass_is_base=bypass_is_base,
        tokens_per_second=run.tokens_per_second,
        memory_bytes=run.peak_memory_bytes,
    )
