"""`verify`: the proof for a folder that already stands.

In: a base and an expanded folder, whose record says which blocks are new. Out: the proof. Refused: a folder
without a record, and a base that is not the one of its plan.
"""

from __future__ import annotations

from pathlib import Path

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.expansion.expanding import check_fit
from blockexpand.expansion.proof import prove_checkpoints
from blockexpand.planning import Proof, read_expansion


def verify(
    base: str | Path | Checkpoint, out: str | Path, *, trained: bool | None = None, device: str = "cpu"
) -> Proof:
    """Prove that the folder `out` is `base`, only deeper.

    Args:
        base: the model it was made from.
        out: a folder that blockexpand wrote; its `blockexpand.json` says which blocks are new.
        trained: whether the new blocks were trained since; None takes the record's word.
        device: where to compute logits, e.g. "cuda".

    Raises:
        PlanError: `out` has no record.
        ExpansionError: its plan is for another base.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    record = read_expansion(out)
    check_fit(record.plan, checkpoint)
    was_trained = record.training is not None if trained is None else trained
    return prove_checkpoints(checkpoint, open_checkpoint(out), record.plan, trained=was_trained, device=device)
