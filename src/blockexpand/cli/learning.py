"""The verbs that train: train, sft."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.records.budget import say_budget
from blockexpand.records.run import load_settings
from blockexpand.units import format_bytes

if TYPE_CHECKING:
    from blockexpand.records.run import RunRecord, TrainSettings

_DRY = Group("Before a run", sort_key=50)


@Parameter(name="*", group=_DRY, negative="")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """Options that ask what a run would take."""

    dry_run: bool = False
    """Print what the run would take (tokens, steps, arithmetic, memory, hours), and start nothing."""
    processes: int = 1
    """Of a dry run: how many devices it is to run on."""
    peak_tflops: float = 989.0
    """Of a dry run: what one device can do at most; an H100 SXM in bf16 by default."""
    mfu: float = 0.4
    """Of a dry run: the share of that which is expected to be reached."""


REAL = DryRun()
Asked = Annotated[DryRun, Parameter(name="*")]


def train(
    recipe: Path,
    /,
    *settings: str,
    resume: bool = False,
    device: str = "auto",
    dry: Asked = REAL,
    common: Shared = DEFAULTS,
) -> int:
    """Post-pretrain the new blocks, or the arm that the recipe names.

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
    chosen = load_settings(recipe, settings, default_arm="blocks")
    if dry.dry_run:
        return _forecast(chosen, dry, common)
    from blockexpand import training

    record = training.train(chosen, resume, device)
    show(common, record, _outcome(record))
    return DONE if record.kept is None or record.kept.holds else FAILED


def sft(
    recipe: Path,
    /,
    *settings: str,
    resume: bool = False,
    device: str = "auto",
    dry: Asked = REAL,
    common: Shared = DEFAULTS,
) -> int:
    """Instruction-tune on chats, by a recipe: the same loop; every parameter trains unless the recipe says not.

    Parameters
    ----------
    recipe
        A YAML file of settings.
    settings
        Settings that replace the recipe's, e.g. optimizer.lr=2e-5.
    resume
        Go on from the run folder's newest checkpoint.
    device
        Where to run: auto (the accelerator where there is one), cpu, or e.g. cuda.
    """
    chosen = load_settings(recipe, settings, default_arm="full")
    if dry.dry_run:
        return _forecast(chosen, dry, common)
    from blockexpand import training

    record = training.sft(chosen, resume, device)
    show(common, record, _outcome(record))
    return DONE if record.kept is None or record.kept.holds else FAILED


def _forecast(settings: TrainSettings, dry: DryRun, common: Shared) -> int:
    from blockexpand.training import Devices, forecast

    devices = Devices(number=dry.processes, peak_tflops=dry.peak_tflops, mfu=dry.mfu)
    found = forecast(settings, devices)
    what = f"{found.num_trained_blocks} of {found.num_blocks} blocks" if found.num_trained_blocks else "adapters"
    epochs, kl = f"{found.domain_epochs:,.2f} epochs", found.reference_flops / found.flops
    lines = [
        f"{settings.out}: would train {what}, {found.num_trained_parameters:,} of {found.num_parameters:,} parameters",
        f"  data    {found.domain_tokens:,} domain tokens ({epochs}), {found.general_tokens:,} general",
        f"  steps   {found.num_steps:,} of {found.rows_per_step:,} rows of {found.row_tokens:,} tokens",
        f"  work    {found.flops:.3g} operations" + (f", {kl:.1%} of them to ask the base" if kl else ""),
        f"  memory  {format_bytes(found.memory_bytes)} a process: {format_bytes(found.state_bytes)} weights, "
        f"gradients and moments, {format_bytes(found.activation_bytes)} activations",
        f"  disk    {format_bytes(found.checkpoint_bytes)} a checkpoint, {settings.keep_checkpoints} kept",
        f"  time    {found.hours:,.3g} hours on {devices.number} x {devices.peak_tflops:g} TFLOPS at {devices.mfu:.0%}",
        "Computed from headers and records; nothing was started.",
    ]
    show(common, found, "\n".join(lines))
    return DONE


def _outcome(record: RunRecord) -> str:
    out = record.settings.out
    made = f"{out}/model" if record.exported else out
    lines = [
        f"{made}: {record.num_trainable_parameters:,} of {record.num_parameters:,} parameters trained, "
        f"{record.num_steps:,} steps, {record.tokens_per_second:,.0f} tokens/s"
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
