"""From a checkpoint and a wish to a plan.

In: a base checkpoint (headers and config only) and how many blocks, or where. Out: a `Plan`. Refused: what
families, survey and placing refuse. No tensor is read and nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.digests import digest_json
from blockexpand.planning.costing import cost
from blockexpand.planning.placing import place
from blockexpand.planning.plans import BaseFacts, NewBlock, Placement, Plan, number
from blockexpand.planning.rewriting import rewrite
from blockexpand.planning.survey import survey


def plan(
    base: str | Path | Checkpoint,
    blocks: int | None = None,
    *,
    placement: str = "interleaved",
    after: Sequence[int] | None = None,
    per_group: int = 1,
) -> Plan:
    """Decide where new blocks go.

    Args:
        base: a model folder, a hub id, or an opened checkpoint.
        blocks: how many new blocks in all.
        placement: "interleaved" (the paper's: copies of each group's top `per_group` blocks on top of it),
            "prefix" (below block 0, copies of the first blocks) or "suffix" (above the last, of the last).
        after: instead of `blocks`: a new block on top of each listed old block, a copy of it; -1 for below
            block 0.
        per_group: new blocks for each group when interleaved.

    Raises:
        CheckpointError, FamilyError, PlanError: the base cannot be expanded, or not like this.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    facts = survey(checkpoint)
    placed = place(facts.depth, blocks, placement, after, per_group)
    new_blocks = number(placed.insertions)
    positions = tuple(block.position for block in new_blocks)
    kinds = iter(range(facts.depth))
    donors = {block.position: block.donor for block in new_blocks}
    sources = [donors[i] if i in donors else next(kinds) for i in range(facts.depth + len(new_blocks))]
    result = rewrite(facts.family, checkpoint.config, sources)
    return Plan(
        base=BaseFacts(
            source=checkpoint.source,
            family=facts.family.name,
            model_type=checkpoint.config["model_type"],
            num_blocks=facts.depth,
            config_digest=digest_json(checkpoint.config),
            layout_digest=facts.layout_digest,
        ),
        placement=Placement(kind=placed.kind, per_group=per_group, group_sizes=placed.group_sizes),
        new_blocks=new_blocks,
        block=facts.block,
        config_changes=result.changes,
        config_before=result.before,
        notes=(*result.notes, *_notes(new_blocks)),
        cost=cost(facts, checkpoint.config, positions),
    )


def _notes(new_blocks: Sequence[NewBlock]) -> tuple[str, ...]:
    """What the placement itself has to say."""
    lowest = [block.id for block in new_blocks if block.after < 0]
    if not lowest:
        return ()
    # Measured: docs/proof.md, "Where a step is dangerous".
    return (
        f"{', '.join(lowest)} below the first block, where a trained model's residual stream is small: one AdamW step "
        "at lr 1e-5 moved a trained 8-block model by 0.2 nats a token from there, and by 1e-7 from anywhere else; "
        "train such blocks with a far smaller learning rate",
    )
