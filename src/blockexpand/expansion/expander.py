"""A plan and a base become a deeper checkpoint: headers rewritten, bytes moved, zeros left as holes.

In: a base checkpoint and a plan for exactly that base. Out: a plain Hugging Face folder with everything the
base had, and `blockexpand.json`, written last. Refused: a plan for another base, an output that is the base
or touches it, an output that exists, weights that are not finite, too little space. Nothing half-done is ever
visible, and the same base and plan give the same bytes. Neither torch nor transformers is imported, except by
the proof.
"""

from __future__ import annotations

from pathlib import Path

from blockexpand import __version__
from blockexpand.checkpoint import (
    Checkpoint,
    OutputTensor,
    copy_files,
    lay_out,
    open_checkpoint,
    other_files,
    output_tensor,
    refuse_not_finite,
    skeleton_of,
    write_config,
    write_weights,
)
from blockexpand.errors import ExpansionError
from blockexpand.expansion.planner import check_fit
from blockexpand.expansion.proof import prove_checkpoints
from blockexpand.expansion.survey import refuse_untied
from blockexpand.families import Family, family_for, with_entries
from blockexpand.progress import say
from blockexpand.records import write_record
from blockexpand.records.expansion import ExpansionRecord, Proof
from blockexpand.records.plan import Plan, read_plan
from blockexpand.staging import RECORD_NAME, check_output, staged_folder


def expand(
    base: str | Path | Checkpoint,
    out: str | Path,
    plan: Plan | str | Path,
    *,
    overwrite: bool = False,
    prove: bool = False,
    digest: bool = True,
) -> ExpansionRecord:
    """Write the expanded model to `out`.

    Args:
        base: a model folder, a hub id, or an opened checkpoint.
        out: the folder to write; it appears whole or not at all.
        plan: a plan for this base, or the path of a saved one.
        overwrite: replace `out` if blockexpand made it.
        prove: run the whole proof on what was written, and keep nothing if it fails. Always done for a family that
            has no file: found by structure, it is used only if the proof passes.
        digest: hash every tensor of the base as it is copied, to record its fingerprint, and refuse NaN.

    Raises:
        ExpansionError: plan and base do not belong together, or the proof failed.
        CheckpointError, StagingError: the base cannot be read, or the output not written.
    """
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    chosen = plan if isinstance(plan, Plan) else read_plan(plan)
    target = Path(out)
    check_fit(chosen, checkpoint)
    check_apart(checkpoint.folder, target)
    check_output(target, overwrite)
    files = other_files(checkpoint)
    with staged_folder(target, overwrite) as staged:
        copy_files(checkpoint, files.copied, staged)
        write_config(staged, with_entries(checkpoint.config, chosen.config_changes))
        family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
        kept, added = tensors_of(family, checkpoint, chosen)
        found = write_weights(checkpoint, lay_out(checkpoint, kept, added), staged, digest=digest)
        refuse_not_finite(checkpoint, found)
        refuse_untied(family, checkpoint)
        proof = _prove(checkpoint, staged, chosen) if prove or family.discovered else None
        digests = {name: result.digest for name, result in sorted(found.items())} if digest else None
        record = ExpansionRecord(
            blockexpand_version=__version__,
            plan=chosen,
            base_digests=digests,
            files_copied=files.copied,
            files_left_out=files.left_out,
            proof=proof,
            base_files=skeleton_of(checkpoint),
        )
        write_record(staged / RECORD_NAME, record)
    if files.left_out:
        say(f"  left out: {', '.join(files.left_out)}")
    return record


def check_apart(base: Path, out: Path) -> None:
    """Refuse an output that is the base, or inside it, or around it.

    Raises:
        ExpansionError: it is.
    """
    source, target = base.resolve(), out.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise ExpansionError(
            f"the output {out} is the base {base}, inside it or around it; expected a folder beside it; choose another"
        )


def tensors_of(family: Family, checkpoint: Checkpoint, plan: Plan) -> tuple[dict[str, str], list[OutputTensor]]:
    """The new name of every old tensor, and the tensors of the new blocks in the order of their donors' bytes."""
    kept = {name: family.renumbered(name, plan.new_index) for name in checkpoint.tensors}
    added: list[OutputTensor] = []
    for block in plan.new_blocks:
        tensors = plan.tensors_of(block.donor)
        donors = {t: checkpoint.tensors[family.name_of(block.donor, t.tail)] for t in tensors}
        for tensor, entry in sorted(donors.items(), key=lambda pair: (pair[1].file, pair[1].start)):
            added.append(output_tensor(family.name_of(block.position, tensor.tail), entry, tensor.starts))
    num_planned = sum(len(plan.tensors_of(block.donor)) for block in plan.new_blocks)
    assert len(added) == num_planned, "a new block lacks a tensor"
    return kept, added


def _prove(checkpoint: Checkpoint, staged: Path, plan: Plan) -> Proof:
    proof = prove_checkpoints(checkpoint, open_checkpoint(staged), plan)
    if not proof.passed:
        failed = "; ".join(check.line for check in proof.checks if not check.passed)
        advice = (
            f"family {plan.base.family!r} has no file, so choose another base or write one"
            if plan.base.discovered
            else "expand without the proof to look at the result"
        )
        raise ExpansionError(f"the proof failed for {checkpoint.source}: {failed}; nothing was written; {advice}")
    return proof
