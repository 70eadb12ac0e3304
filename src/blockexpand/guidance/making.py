"""`plan`: where new blocks go, measuring first when the placement is guided.

In: a base, a wish, and for a guided placement general text. Out: a `Plan`, with the scores when it was guided.
Refused, before anything is measured: what planning refuses, guided placement without text, text for another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from blockexpand import expansion
from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import GuidanceError
from blockexpand.expansion import BlockScore, Guidance, Init, Insertion, Plan
from blockexpand.guidance.calibration import Calibration


class Others(TypedDict, total=False):
    """What else `plan` takes."""

    after: Sequence[int | Insertion] | None
    """Instead of a number of blocks: a new one on top of each listed old block; -1 for below block 0."""
    per_group: int
    """New blocks for each group when interleaved."""
    init: Init
    """How new blocks start: identity, or for an ablation copy or random."""


def plan(
    base: str | Path | Checkpoint,
    blocks: int | None = None,
    *,
    placement: str = "interleaved",
    calibration: Calibration | None = None,
    **others: Unpack[Others],
) -> Plan:
    """Decide where new blocks go.

    Args:
        base: a model folder, a hub id, or an opened checkpoint.
        blocks: how many new blocks in all.
        placement: "interleaved" (the paper's: copies of each group's top blocks on top of it), "prefix" (below
            block 0, copies of the first blocks), "suffix" (above the last, of the last), or "guided" (one on top of
            each of the blocks that general text misses least; on the tiny base no better than interleaved: log.md).
        calibration: for "guided": the general text that the base is measured on.
        others: `after` (instead of `blocks`: a new block on top of each listed old block, a copy of it; -1 for below
            block 0), `per_group` (new blocks for each group when interleaved; 1), `init` ("identity", or for an
            ablation "copy" or "random").

    Raises:
        CheckpointError, FamilyError, PlanError: the base cannot be expanded, or not like this.
        GuidanceError, CorpusError, LiveError: the base cannot be measured on the text given.
    """
    if placement != "guided":
        if calibration is not None:
            raise GuidanceError(
                f"text to measure on ({', '.join(map(str, calibration.texts))}) with placement {placement!r}; expected "
                "it only with 'guided'; leave one out"
            )
        return expansion.plan(base, blocks, placement=placement, **others)
    if calibration is None:
        raise GuidanceError(
            "placement 'guided' without text to measure the base on; expected general text, like what the base knows; "
            "give calibration=Calibration(texts=('general.jsonl',)), or --text general.jsonl"
        )
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    # The whole request is checked before the long work: with scores that are all alike, it fails where it would fail.
    expansion.plan(checkpoint, blocks, placement=_unmeasured(checkpoint, calibration), **others)
    from blockexpand.guidance.measuring import measure

    return expansion.plan(checkpoint, blocks, placement=measure(checkpoint, calibration), **others)


def _unmeasured(checkpoint: Checkpoint, calibration: Calibration) -> Guidance:
    depth = expansion.survey(checkpoint).depth
    return Guidance(
        measure=calibration.measure,
        scores=(BlockScore(kl=0.0, loss_rise=0.0, cosine=0.0),) * depth,
        base_loss=0.0,
        num_tokens=0,
        row_tokens=0,
        tokens_digest="",
        texts=(),
        dtype="",
        device="",
    )
