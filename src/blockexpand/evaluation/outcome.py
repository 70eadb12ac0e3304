"""What an arm learnt and what it lost: its losses beside the base's, on test documents that steered nothing.

In: a model's folder and the prepared data; a run's record. Out: the losses of each document, and `Learnt`, with the
interval of the gain, and the statement about the budget that the run made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from blockexpand.corpus import open_corpus
from blockexpand.evaluation.held_out import document_losses
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device, training_dtype
from blockexpand.records.evaluation import DocumentLosses
from blockexpand.records.intervals import ratio_difference
from blockexpand.records.learn import Arm, Learnt
from blockexpand.records.run import RunRecord

_ROWS_PER_PASS = 4
_LEAST_PAIRS = 8
"""Test documents; fewer cannot carry an interval."""


def measure_text(model: Path, corpus: Path, name: str, device: str = "auto") -> DocumentLosses:
    """The losses of each test document, in the arithmetic that a run would have here.

    Args:
        model: The folder of a checkpoint.
        corpus: A prepared folder.
        name: What the model is called on the way.
        device: Where it runs.

    Raises:
        LiveError: the model cannot be loaded.
    """
    where = choose_device(device)
    loaded = cast(Any, load_model(model, dtype=training_dtype("auto", model, where), device=str(where)))
    return document_losses(loaded, open_corpus(corpus).rows("test"), _ROWS_PER_PASS, f"loss of {name}")


def learnt_by(
    arm: Arm, run: RunRecord, base: DocumentLosses, now: DocumentLosses, *, bypass_is_base: bool | None
) -> Learnt:
    """What came of a run, whose model has the losses `now` on the data's test documents, and its base `base`."""
    assert run.kept is not None, "a run of learn has a budget"
    gain = ratio_difference(base.nats_M, now.nats_M, base.tokens_M)
    told = len(base.nats_M) >= _LEAST_PAIRS
    return Learnt(
        arm=arm,
        lr=run.settings.optimizer.lr,
        num_trained=run.num_trainable_parameters,
        num_steps=run.num_steps,
        domain_before=float(base.nats_M.sum() / base.tokens_M.sum()),
        domain_after=float(now.nats_M.sum() / now.tokens_M.sum()),
        gain_low=gain.low if told else None,
        gain_high=gain.high if told else None,
        num_test_documents=len(base.nats_M),
        budget=run.kept,
        bypass_is_base=bypass_is_base,
        tokens_per_second=run.tokens_per_second,
        memory_bytes=run.peak_memory_bytes,
    )
