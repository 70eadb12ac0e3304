"""`verify`: the proof for a folder that already stands.

In: a base and an expanded folder, whose record says which blocks are new. Out: the proof. Refused: a folder
without a record, and a base that is not the one of its plan.
"""

from __future__ import annotations

from pathlib import Path

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.expansion.expanding import check_fit
from blockexpand.expansion.proof import memory_bytes, prove_checkpoints
from blockexpand.expansion.record import Proof, read_expansion


def verify(
    base: str | Path | Checkpoint,
    out: str | Path,
    *,
    trained: bool | None = None,
    device: str = "cpu",
    memory_gb: float | None = None,
) -> Proof:
    """Prove that the folder `out` is `base`, only deeper.

    Args:
        base: the model it was made from.
        out: a folder that blockexpand wrote; its `blockexpand.json` says which blocks are new.
        trained: whether the new blocks were trained since; None takes the record's word.
        device: where to compute logits, e.g. "cuda".
        memory_gb: what the models may take, in GB (1e9 bytes); larger ones are run a few blocks at a time. None is
            what is free.

    Raises:
        PlanError: `out` has no record.
        ExpansionError: its plan is for another base, or the memory is too little for one block.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    record = read_expansion(out)
    check_fit(record.plan, checkpoint)
    was_trained = record.training is not None if trained is None else trained
    memory = memory_bytes(memory_gb)
    opened = open_checkpoint(out)
    return prove_checkpoints(checkpoint, opened, record.plan, trained=was_trained, device=device, memory=memory)
