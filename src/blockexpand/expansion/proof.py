"""The proof that an expanded checkpoint is its base, only deeper.

In: the base and the expanded folder. Out: a frozen `Proof`: one line a check, with its figure and verdict.

1. On disk, streaming: the config is the plan's; every old tensor has the base's bytes; every new block has
   its donor's bytes except the residual writers, which are zero (or -1, where a gain is stored as gain minus one);
   all values are finite.
2. In memory: the logits, with and without KV cache, and greedy generation, bit for bit, in the checkpoint's
   dtype and in float32. Where there is not enough memory, with the blocks left on the disk; then parts 3 and 4 are
   left out, and the proof says so.
3. Gradient: at step 0 every writer of every new block gets some and no old tensor gets any; once the writers
   have moved, every tensor of every new block gets some.
4. Drift: how far one small optimiser step moves the model, in nats (KL), against a bound.

For new blocks that were trained ("trained"), the writers are no longer zero: then it is the model with the
new blocks bypassed that must be the base bit for bit, and parts 3 and 4 say nothing and are left out. The same
holds for new blocks that were not started as identities (an ablation).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import (
    Checkpoint,
    TensorDigest,
    TensorEntry,
    compare_tensors,
    digest_of_minus_ones,
    digest_tensors,
    open_checkpoint,
    refuse_not_finite,
)
from blockexpand.digests import digest_json
from blockexpand.errors import ExpansionError
from blockexpand.expansion.planner import check_fit
from blockexpand.families import Family, family_for, with_entries
from blockexpand.records import with_format
from blockexpand.records.expansion import Check, Proof, read_expansion
from blockexpand.records.plan import Plan

_SPARE = 0.8
"""The share of the free memory that a proof takes when nobody says how much it may."""


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
        memory_gb: what the models may take, in GB (1e9 bytes); larger ones stay on the disk. None is
            what is free.

    Raises:
        PlanError: `out` has no record.
        ExpansionError: its plan is for another base, or the models cannot be run.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    record = read_expansion(out)
    check_fit(record.plan, checkpoint)
    was_trained = record.training is not None if trained is None else trained
    memory = memory_bytes(memory_gb)
    opened = open_checkpoint(out)
    return prove_checkpoints(checkpoint, opened, record.plan, trained=was_trained, device=device, memory=memory)


def prove_checkpoints(
    base: Checkpoint,
    out: Checkpoint,
    plan: Plan,
    *,
    trained: bool = False,
    device: str = "cpu",
    memory: int | None = None,
) -> Proof:
    """Run every check that can be run; when the disk already disagrees on names, nothing is loaded.

    `memory` is how many bytes the models may take; None is what is free. Larger ones stay on the disk.

    Raises:
        CheckpointError: a file is broken, or a weight of either is NaN or infinite.
        ExpansionError: transformers cannot run the models.
    """
    family = family_for(base.config, base.source, base.tensors)
    checks = [_check_config(base, out, plan), _check_names(family, base, out, plan)]
    dtypes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    if all(check.passed for check in checks):
        checks += _check_bytes(family, base, out, plan, trained)
        # The only import of torch in this room.
        from blockexpand.expansion.memory_proof import dtypes_of, measure

        bypassed = trained or plan.init != "identity"
        allowed = free_bytes(device) if memory is None else memory
        dtypes = dtypes_of(plan)
        measured, left_out = measure(base, out, plan, trained=bypassed, device=device, memory=allowed)
        checks += measured
    return Proof(
        plan_digest=digest_json(with_format(plan)),
        trained=trained,
        dtypes=dtypes,
        device=device,
        checks=tuple(checks),
        left_out=left_out,
    )


def memory_bytes(memory_gb: float | None) -> int | None:
    """Bytes of so many GB.

    Raises:
        ExpansionError: it is not a positive number.
    """
    if memory_gb is None:
        return None
    if not 0 < memory_gb < float("inf"):
        raise ExpansionError(
            f"the memory of the proof is {memory_gb} GB; expected a number above 0, e.g. --memory-gb 16; leave it out "
            "to use what is free"
        )
    return int(memory_gb * 1e9)


def free_bytes(device: str) -> int | None:
    """What models may take here when nobody says how much; None where it is not known."""
    if device == "cpu":
        import psutil  # 10 ms, and `plan` imports this room

        return int(_SPARE * psutil.virtual_memory().available)
    import torch

    kind = torch.device(device).type
    return int(_SPARE * torch.accelerator.get_memory_info(device)[0]) if kind in ("cuda", "xpu") else None


def _check_config(base: Checkpoint, out: Checkpoint, plan: Plan) -> Check:
    expected = with_entries(base.config, plan.config_changes)
    name = "config.json is the base's with the plan's changes"
    for key in {**expected, **out.config}:
        wanted, found = _entry(expected, key), _entry(out.config, key)
        if wanted != found:
            return Check(name=name, passed=False, figure=f"{key} is {found:.60}, expected {wanted:.60}")
    figure = f"{len(expected)} entries, {len(plan.config_changes)} changed"
    return Check(name=name, passed=True, figure=figure)


def _entry(config: dict[str, Any], key: str) -> str:
    """The entry as it would be written: null is not the same as absent, nor 1 as true."""
    return json.dumps(config[key], sort_keys=True) if key in config else "absent"


def _check_names(family: Family, base: Checkpoint, out: Checkpoint, plan: Plan) -> Check:
    expected = {family.renumbered(name, plan.new_index): entry for name, entry in base.tensors.items()}
    for block in plan.new_blocks:
        for tensor in plan.tensors_of(block.donor):
            donor = base.tensors[family.name_of(block.donor, tensor.tail)]
            expected[family.name_of(block.position, tensor.tail)] = donor
    name = "tensors have the planned names, shapes and dtypes"
    wrong = [n for n in (*expected, *out.tensors) if _kind(expected.get(n)) != _kind(out.tensors.get(n))]
    if not wrong:
        return Check(name=name, passed=True, figure=f"{len(expected):,} tensors")
    found = f"{wrong[0]} is {_kind(out.tensors.get(wrong[0]))}, expected {_kind(expected.get(wrong[0]))}"
    return Check(name=name, passed=False, figure=f"{len(wrong):,} differ: {found}")


def _kind(entry: TensorEntry | None) -> str:
    return "absent" if entry is None else f"{entry.dtype} {list(entry.shape)}"


def _check_bytes(family: Family, base: Checkpoint, out: Checkpoint, plan: Plan, trained: bool) -> list[Check]:
    names = {name: family.renumbered(name, plan.new_index) for name in base.tensors}
    planned = () if trained else tuple(planned_tensors(family, plan))
    expected = {old: [new] for old, new in names.items()}
    for new, donor, starts in planned:
        if starts == "donor":
            expected[donor].append(new)
    compared = compare_tensors(base, out, expected)
    refuse_not_finite(base, compared.num_not_finite)
    # What has a base tensor's bytes has its finite numbers; everything else is looked at on its own.
    same = {new for news in expected.values() for new in news} - compared.different
    others = digest_tensors(out, [name for name in out.tensors if name not in same])
    refuse_not_finite(out, others)
    changed = [new for new in names.values() if new in compared.different]
    checks = [
        Check(
            name="old tensors have the base's bytes",
            passed=not changed,
            figure=f"{len(changed)} of {len(names):,} differ: {changed[0]}"
            if changed
            else f"{len(names):,} tensors, {base.num_bytes:,} bytes compared",
        )
    ]
    return checks if trained else [*checks, *_check_new_blocks(base, plan, planned, others)]


def planned_tensors(family: Family, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Every tensor of the new blocks: its name, its donor's, and what it starts as."""
    for block in plan.new_blocks:
        for tensor in plan.tensors_of(block.donor):
            name, donor = family.name_of(block.position, tensor.tail), family.name_of(block.donor, tensor.tail)
            yield name, donor, tensor.starts


def _check_new_blocks(
    base: Checkpoint, plan: Plan, planned: Sequence[tuple[str, str, str]], others: dict[str, TensorDigest]
) -> list[Check]:
    """`others` are the digests of the output's tensors that do not have the bytes of a tensor of the base."""
    not_silent, not_donor, counts = [], [], dict.fromkeys(("donor", "zero", "minus-one", "random"), 0)
    for name, donor, starts in planned:
        counts[starts] += 1
        if starts == "donor":
            not_donor += [name] if name in others else []
        elif starts == "zero":
            not_silent += [] if others[name].all_zero else [name]
        elif starts == "minus-one":
            not_silent += [] if others[name].digest == digest_of_minus_ones(base.tensors[donor]) else [name]
    num_silent = f"{counts['zero'] + counts['minus-one']} residual writers"
    num_silent += f", {counts['minus-one']} of them gains of -1" if counts["minus-one"] else ""
    silent = [_all(num_silent, "the new blocks' residual writers are zero", not_silent)]
    return [
        *(silent if plan.init == "identity" else []),
        _all(f"{counts['donor']} tensors", "the new blocks' other tensors are their donors'", not_donor),
    ]


def _all(good: str, name: str, bad: list[str]) -> Check:
    return Check(name=name, passed=not bad, figure=f"{len(bad)} are not, e.g. {bad[0]}" if bad else good)
