"""The verb train: a recipe into a run folder. Nothing heavy is imported before the recipe has been read."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.errors import Interrupted
from blockexpand.records.budget import say_budget
from blockexpand.records.run import RunRecord, TrainSettings, load_settings, read_metrics
from blockexpand.units import format_bytes

if TYPE_CHECKING:
    from blockexpand.training import RunTakes


@Parameter(name="*", group=Group("Before a run", sort_key=50), negative="")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """Options that ask what a run would take."""

    dry_run: bool = False
    """Check all that the run would check, print what it would take, and start nothing."""
    processes: int = 1
    """Of a dry run: how many devices it is to run on."""


REAL = DryRun()


def train(
    recipe: Path,
    /,
    *settings: str,
    resume: bool = False,
    device: str = "auto",
    dry: Annotated[DryRun, Parameter(name="*")] = REAL,
    common: Shared = DEFAULTS,
) -> int:
    """Train the new blocks, or the arm that the recipe names, on text or chats; what the base knew is kept.

    Parameters
    ----------
    recipe
        A YAML file of settings.
    settings
        Settings that replace the recipe's, e.g. optimizer.lr=1e-3 seed=2.
    resume
        Go on from the run folder's newest checkpoint.
    device
        Where to run: auto (the accelerator where there is one), cpu, or e.g. cuda.
    """
    chosen = load_settings(recipe, settings)

    from blockexpand import training

    if dry.dry_run:
        return _show_takes(chosen, training.check_run(chosen, dry.processes), common)
    try:
        record = training.train(chosen, resume, device)
    except Interrupted as stopped:
        again = shlex.join(["blockexpand", "train", str(recipe), *settings, "--resume"])
        raise type(stopped)(f"{str(stopped).removesuffix(' with --resume')}: {again}") from None
    show(common, record, _outcome(record))
    if not record.nothing_inside_budget:
        return DONE
    print(_nothing_inside(record), file=sys.stderr)
    return FAILED


def _show_takes(settings: TrainSettings, found: RunTakes, common: Shared) -> int:
    from blockexpand.live.device import choose_device, total_bytes

    cost = found.cost
    lines = [f"{settings.out}: would train the arm {settings.arm.kind!r}"]
    if cost is not None:
        what = f"{cost.num_trained_blocks} of {cost.num_blocks} blocks" if cost.num_trained_blocks else "adapters"
        lines = [
            f"{settings.out}: would train {what}, {cost.num_trained_parameters:,} of {cost.num_parameters:,} parameters"
        ]
    epochs = f"{found.domain_epochs:,.2f} epochs"
    general = f"{found.general_tokens:,} general ({found.general})" if found.general_tokens else "nothing kept"
    lines += [
        f"  data    {found.domain_tokens:,} domain tokens ({epochs}), {general}",
        f"  steps   {found.num_steps:,} of {found.rows_per_step:,} rows of {found.row_tokens:,} tokens",
    ]
    if cost is not None:
        lines += [
            f"  memory  {format_bytes(found.memory_bytes or 0)} a process: {format_bytes(cost.state_bytes)} weights, "
            "gradients and moments in all, the rest activations",
            f"  disk    {format_bytes(cost.checkpoint_bytes)} a checkpoint, {settings.keep_checkpoints} kept",
        ]
    lines.append("  time    not known before a step has been made on this machine")
    there = total_bytes(choose_device())
    if found.memory_bytes is not None and found.memory_bytes > there:
        lines.append(f"  note    this machine's device has {format_bytes(there)}")
    lines += [f"  note    {warning}" for warning in found.warnings]
    lines.append("Computed from headers and records; nothing was started.")
    show(common, found, "\n".join(lines))
    return DONE


def _outcome(record: RunRecord) -> str:
    out = record.settings.out
    made = f"{out}/model" if record.exported else out
    lines = [
        f"{made}: {record.num_trainable_parameters:,} of {record.num_parameters:,} parameters trained, "
        f"{record.num_steps:,} steps"
    ]
    if not record.exported:
        lines.append(
            f"  no checkpoint of the family can hold what the arm {record.settings.arm.kind!r} trained: nothing "
            "was exported; `compare` measures it"
        )
    if record.best is not None and record.base is not None:
        lines.append(f"  domain loss  {record.base.domain:.4f} -> {record.best.domain:.4f} (step {record.best.step})")
        if record.best.general is not None and record.base.general is not None:
            lines.append(
                f"  general loss {record.base.general:.4f} -> {record.best.general:.4f} ({record.best.rise or 0:+.2%})"
            )
    if record.kept is not None:
        lines.append(f"  {say_budget(record.kept)}")
    return "\n".join(lines)


def _nothing_inside(record: RunRecord) -> str:
    """Loudly: what was seen, and what to try."""
    budget = record.settings.retention.forgetting_budget or 0.0
    rows = [
        r for r in read_metrics(Path(record.settings.out) / "metrics.jsonl") if r["kind"] == "measure" and r["step"]
    ]
    seen = "; ".join(
        f"step {row['step']}: domain {row['domain']:.3f}, general {row['rise']:+.2%}"
        for row in sorted((r for r in rows if r["rise"] is not None), key=lambda r: r["rise"])[:3]
    )
    base = "the untouched base" if record.best is not None and record.best.step == 0 else "the step that forgot least"
    return (
        f"NOTHING INSIDE THE BUDGET of {budget:.2%}: {base} is what was written. Nearest to it: "
        f"{seen or 'nothing was measured'}. Try a lower optimizer.lr ({record.settings.optimizer.lr:g}), a larger "
        "retention.replay or kl_weight, more general text, or measure more often."
    )
