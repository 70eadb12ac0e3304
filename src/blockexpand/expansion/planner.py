"""From a checkpoint and a wish to a plan.

In: a base checkpoint (headers and config only) and how many blocks, or where. Out: a `Plan`. Refused: what
families, survey and placing refuse. No tensor is read, and nothing heavy is imported unless the family has no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from blockexpand.checkpoint import Checkpoint, hub_name, open_checkpoint
from blockexpand.digests import digest_json
from blockexpand.errors import ExpansionError, PlanError, nearest
from blockexpand.expansion.cost import cost
from blockexpand.expansion.deeper_config import rewrite, unsayable
from blockexpand.expansion.placement import place
from blockexpand.expansion.survey import Survey, started, survey
from blockexpand.families import Family, with_entries
from blockexpand.records.plan import SILENT, BaseFacts, BlockKind, Init, Insertion, NewBlock, Placement, Plan, number

_SUGGESTED = 3
"""How many placements that work an error names."""


def plan(
    base: str | Path | Checkpoint,
    blocks: int | None = None,
    *,
    placement: str = "interleaved",
    after: Sequence[int | Insertion] | None = None,
    per_group: int = 1,
    init: Init = "identity",
) -> Plan:
    """Decide where new blocks go.

    Args:
        base: a model folder, a hub id, or an opened checkpoint.
        blocks: how many new blocks in all.
        placement: "interleaved" (the paper's: copies of each group's top `per_group` blocks on top of it),
            "prefix" (below block 0, copies of the first blocks) or "suffix" (above the last, of the last).
        after: instead of `blocks`: a new block on top of each listed old block, a copy of it (or of the one that an
            `Insertion` names); -1 for below block 0.
        per_group: new blocks for each group when interleaved.
        init: how new blocks start: "identity" (silent, so that nothing changes), or for an ablation "copy" (nothing
            is silenced) or "random" (matrices drawn anew).

    Raises:
        CheckpointError, FamilyError, PlanError: the base cannot be expanded, or not like this.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    facts = survey(checkpoint)
    if init not in get_args(Init):
        raise PlanError(
            f"unknown init {init!r}; expected one of {', '.join(get_args(Init))}; {nearest(str(init), get_args(Init))}"
        )
    kinds = started(facts.kinds, init)
    placed, insertions = place(facts.depth, blocks, placement, after, per_group)
    new_blocks = number(insertions)
    sources = _sources(facts.depth, insertions)
    reason = _unsayable(facts.family, checkpoint.config, sources)
    if reason is not None:
        raise PlanError(
            f"{checkpoint.source}: {reason}; expected each old block to keep its kind and each new one to have its "
            f"donor's; {_nearest_that_work(facts, checkpoint, len(new_blocks))}"
        )
    result = rewrite(facts.family, checkpoint.config, sources)
    return Plan(
        base=BaseFacts(
            source=checkpoint.source,
            family=facts.family.name,
            model_type=checkpoint.config["model_type"],
            num_blocks=facts.depth,
            config_digest=digest_json(checkpoint.config),
            layout_digest=facts.layout_digest,
            discovered=facts.family.discovered,
            hub=hub_name(checkpoint.folder),
        ),
        placement=placed,
        new_blocks=new_blocks,
        kinds=kinds,
        init=init,
        config_changes=result.changes,
        config_before=result.before,
        notes=(*result.notes, *_notes(facts, checkpoint, kinds, new_blocks)),
        cost=cost(facts, [block.donor for block in new_blocks]),
    )


def _sources(depth: int, insertions: Sequence[Insertion | NewBlock]) -> list[int]:
    """For each block of the new stack, the old block whose kind it has."""
    sources: list[int] = []
    for old in range(-1, depth):
        sources += [old] if old >= 0 else []
        sources += [item.donor for item in insertions if item.after == old]
    return sources


def _unsayable(family: Family, config: dict[str, Any], sources: Sequence[int]) -> str | None:
    """Why the config cannot state such a stack, if it cannot.

    Of a family found by structure nobody knows what its numbers mean, so the two models are built (without memory)
    and compared block by block.
    """
    reason = unsayable(family, config, sources)
    if reason is not None or not family.discovered:
        return reason
    from blockexpand.families.discovery import misplaced

    deeper = with_entries(config, rewrite(family, config, sources).changes)
    return misplaced(config, deeper, family.stack.module, sources)


def _nearest_that_work(facts: Survey, checkpoint: Checkpoint, wanted: int) -> str:
    """The requests nearest in number that the config can state, in words."""
    found: list[str] = []
    for count in sorted(range(1, facts.depth + 1), key=lambda n: (abs(n - wanted), n)):
        for kind, per_group in _requests(facts.depth, count):
            _, insertions = place(facts.depth, count, kind, None, per_group)
            if _unsayable(facts.family, checkpoint.config, _sources(facts.depth, insertions)) is None:
                of_groups = f" with per_group={per_group}" if per_group > 1 else ""
                found.append(f"blocks={count} placement={kind}{of_groups}")
        if len(found) >= _SUGGESTED:
            break
    return f"use {' or '.join(found[:_SUGGESTED])}" if found else "no placement by count can be stated; list positions"


def _requests(depth: int, count: int) -> list[tuple[str, int]]:
    """The placements of so many blocks that a model so deep can have."""
    groups = [(count // p, p) for p in range(1, count + 1) if count % p == 0]
    interleaved = [("interleaved", p) for n, p in groups if n <= depth and p <= depth // n]
    return [*interleaved, ("suffix", 1), ("prefix", 1)]


def _notes(facts: Survey, checkpoint: Checkpoint, kinds: Sequence[BlockKind], blocks: Sequence[NewBlock]) -> list[str]:
    """What is to be said of such a base, and of new blocks at such places."""
    notes = []
    if facts.family.discovered:
        notes.append(
            f"family {facts.family.name}: no file; found by structure; the proof decides: a tiny random model of it "
            "with silent copies of its blocks was the same function bit for bit, and expand always runs the whole "
            "proof on this one"
        )
    lowest = [block.id for block in blocks if block.after < 0]
    if lowest:
        # Measured: docs/proof.md, "Where a step is dangerous".
        notes.append(
            f"{', '.join(lowest)} below the first block, where a trained model's residual stream is small: one AdamW "
            "step at lr 1e-5 moved a trained 8-block model by 0.2 nats a token from there, and by 1e-7 from anywhere "
            "else; train such blocks with a far smaller learning rate"
        )
    gains = sorted({t.tail for kind in kinds for t in kind.tensors if t.starts in SILENT and len(t.shape) == 1})
    norms = [tail for tail in gains if tail.endswith("norm.weight")]
    if norms:
        # Measured: docs/log.md, 2026-11-25, "starts and rates of new blocks".
        notes.append(
            f"a norm stands behind each branch, so new blocks are silent through its gains ({', '.join(norms)}), which "
            "learn slowly from there: train them ten times as fast (optimizer.writer_lr_scale: 10), and the "
            "projections before them eight times (optimizer.lr_scales)"
        )
    if checkpoint.config.get("auto_map"):
        notes.append(
            "config.json names the code the model was published with (auto_map), which is never run here: plan and "
            "proof are about transformers' own class"
        )
    return notes


def check_fit(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuse a plan that was not made for this checkpoint, or was changed by hand since.

    Raises:
        ExpansionError: the first fact that differs, with both values.
    """
    for what, planned, found in _facts_of(plan, checkpoint):
        if planned != found:
            raise ExpansionError(
                f"the plan is not for {checkpoint.source}: its {what} is {_short(planned)}, this model's is "
                f"{_short(found)}; expected the model it was made from ({plan.base.source}); make a new plan"
            )


def _facts_of(plan: Plan, checkpoint: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Each fact in words, as the plan has it and as the checkpoint does."""
    facts, base = survey(checkpoint), plan.base
    yield "family", base.family, facts.family.name
    yield "number of blocks", base.num_blocks, facts.depth
    yield "digest of config.json", base.config_digest, digest_json(checkpoint.config)
    yield "digest of tensor names, shapes and dtypes", base.layout_digest, facts.layout_digest
    yield "list of each kind of block's tensors", plan.kinds, started(facts.kinds, plan.init)
    rewritten = rewrite(facts.family, checkpoint.config, plan.sources)
    yield "new config", plan.config_changes, rewritten.changes
    yield "old config", plan.config_before, rewritten.before


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 90 else text[:87] + "..."


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Several plans as one."""

    plan: Plan
    """With all new blocks."""
    ids: tuple[dict[str, str], ...]
    """For each of the plans, the id in `plan` of each of its blocks by its own id."""


def combine(base: Checkpoint, plans: Sequence[Plan]) -> Combined:
    """One plan of several for the same base, in the order in which they stand on one another; a single one as it is.

    Raises:
        PlanError: they start new blocks in different ways, or the base's config cannot state the stack.
    """
    facts = survey(base)
    combined = combine_in_memory(facts.family, base.config, plans)
    if len(plans) == 1:
        return combined
    whole = cost(facts, [block.donor for block in combined.plan.new_blocks])
    return dataclasses.replace(combined, plan=dataclasses.replace(combined.plan, cost=whole))


def combine_in_memory(family: Family, config: dict[str, Any], plans: Sequence[Plan]) -> Combined:
    """The same for a base in memory, whose config is `config`. What it costs is not told: the plan is not to be saved.

    Raises:
        PlanError: the plans start new blocks in different ways, or the config cannot state the stack.
    """
    assert plans, "there is a plan to combine"
    inits = sorted({plan.init for plan in plans})
    if len(inits) > 1:
        raise PlanError(
            f"new blocks that start with init {' and '.join(map(repr, inits))} cannot be in one plan; expected one; "
            "leave one of them out"
        )
    blocks, ids = _merged(plans)
    if len(plans) == 1:
        return Combined(plan=plans[0], ids=ids)
    rewritten = rewrite(family, config, _sources(plans[0].base.num_blocks, blocks))
    joint = dataclasses.replace(
        plans[0],
        placement=Placement(kind="explicit"),
        new_blocks=blocks,
        config_changes=rewritten.changes,
        config_before=rewritten.before,
        notes=rewritten.notes,
    )
    return Combined(plan=joint, ids=ids)


def _merged(plans: Sequence[Plan]) -> tuple[tuple[NewBlock, ...], tuple[dict[str, str], ...]]:
    """All new blocks from the bottom up, and each one's id there by plan and own id."""
    ordered = sorted(
        ((block, at) for at, plan in enumerate(plans) for block in plan.new_blocks), key=lambda pair: pair[0].after
    )
    blocks = number(Insertion(after=block.after, donor=block.donor) for block, _ in ordered)
    ids: tuple[dict[str, str], ...] = tuple({} for _ in plans)
    for (block, at), combined in zip(ordered, blocks, strict=True):
        ids[at][block.id] = combined.id
    return blocks, ids
