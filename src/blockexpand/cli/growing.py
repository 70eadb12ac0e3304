"""The verbs that grow a model: plan, expand, verify. None of them imports torch unless a proof is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.records.expansion import Proof
    from blockexpand.records.plan import Plan


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Growth:
    """Where new blocks go, and how they start."""

    blocks: int | None = None
    """How many new blocks."""
    placement: Literal["interleaved", "prefix", "suffix"] = "interleaved"
    """interleaved: spread over the stack as the paper does; prefix: below block 0; suffix: above the last."""
    per_group: int = 1
    """New blocks in one place, when interleaved: copies of each group's top blocks."""
    after: str | None = None
    """Instead of --blocks: a new block on top of each of these, e.g. 3,7,11; -1 is below block 0."""
    init: Literal["identity", "copy", "random"] = "identity"
    """identity: new blocks start silent, so that nothing changes; copy and random are ablations: nothing is silenced,
    or matrices are drawn anew."""

    def plan(self, base: str) -> Plan:
        """The plan for a model."""
        from blockexpand import expansion

        how = {"placement": self.placement, "per_group": self.per_group, "init": self.init}
        return expansion.plan(base, self.blocks, after=_positions(self.after), **how)


def _positions(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--after {text!r} is not a list of blocks; expected numbers like --after 3,7,11") from None


AS_ASKED = Growth()


def plan(
    base: str,
    *,
    growth: Annotated[Growth, Parameter(name="*")] = AS_ASKED,
    out: Path | None = None,
    all_blocks: Annotated[bool, Parameter(name="--all", negative="")] = False,
    common: Shared = DEFAULTS,
) -> int:
    """Decide where new blocks go, and show what that costs. Reads no tensor.

    Parameters
    ----------
    base
        The model: a folder, or a hub id like org/name.
    out
        Save the plan here, e.g. plan.json.
    all_blocks
        Draw every block, also of deep models.
    """
    from blockexpand import expansion

    made = growth.plan(base)
    if out is not None:
        made.save(out)
    show(common, made, lambda: expansion.draw(made, show_all=all_blocks))
    return DONE


def expand(
    base: str,
    out: Path,
    *,
    plan: Path | None = None,
    growth: Annotated[Growth, Parameter(name="*")] = AS_ASKED,
    overwrite: bool = False,
    prove: bool = False,
    digest: bool = True,
    common: Shared = DEFAULTS,
) -> int:
    """Write the deeper checkpoint: a plain Hugging Face folder, and blockexpand.json with the plan.

    Parameters
    ----------
    base
        The model: a folder, or a hub id like org/name.
    out
        The folder to write; it appears whole or not at all.
    plan
        A saved plan; without one, it is made by the options that `blockexpand plan` has, too.
    overwrite
        Replace the folder, if blockexpand made it.
    prove
        Run the whole proof; if it fails, nothing is written. Models larger than the memory stay on the disk.
    digest
        Hash every tensor as it is copied, to record its fingerprint and refuse NaN.
    """
    from blockexpand import expansion

    if plan is not None and growth != AS_ASKED:
        raise UsageError(f"--plan {plan} already says where the new blocks go; expected no other word of it; drop one")
    chosen = plan if plan is not None else growth.plan(base)
    record = expansion.expand(base, out, chosen, overwrite=overwrite, prove=prove, digest=digest)
    made = record.plan
    text = f"{out}: {made.num_blocks} blocks, {len(made.new_blocks)} of them new ({_list(made)})"
    show(common, record, text + (_proof_text(record.proof) if record.proof else ""))
    return DONE


def _list(made: Plan) -> str:
    return ", ".join(str(position) for position in made.new_positions)


def verify(
    base: str,
    out: Path,
    *,
    trained: bool | None = None,
    device: str = "cpu",
    memory_gb: float | None = None,
    common: Shared = DEFAULTS,
) -> int:
    """Prove that the deeper checkpoint is the base. Exit code 1 when it is not.

    Parameters
    ----------
    base
        The model it was made from.
    out
        The folder that expand wrote.
    trained
        The new blocks were trained since: prove that the base inside is untouched. By default the folder's
        record says.
    device
        Where to compute logits.
    memory_gb
        What the models may take, in GB; larger ones stay on the disk, and then gradients and drift are left out.
        By default, what is free.
    """
    from blockexpand import expansion

    proof = expansion.verify(base, out, trained=trained, device=device, memory_gb=memory_gb)
    show(common, proof, _proof_text(proof).lstrip("\n"))
    return DONE if proof.passed else FAILED


def _proof_text(proof: Proof) -> str:
    passed = sum(check.passed for check in proof.checks)
    verdict = "proved" if proof.passed else "NOT PROVED"
    return "\n" + "\n".join(proof.lines) + f"\n{verdict}: {passed} of {len(proof.checks)} checks hold"
