"""The verbs that train: train, sft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show

if TYPE_CHECKING:
    from blockexpand.training import RunRecord


def train(recipe: Path, /, *settings: str, resume: bool = False, common: Shared = DEFAULTS) -> int:
    """Post-pretrain the new blocks, or the arm that the recipe names.

    Parameters
    ----------
    recipe
        A YAML file of settings.
    settings
        Settings that replace the recipe's, e.g. optimizer.lr=1e-3 seed=2.
    resume
        Go on from the run folder's newest checkpoint.
    """
    from blockexpand import training

    chosen = training.load_settings(recipe, settings, default_arm="blocks")
    record = training.train(chosen, resume)
    show(common, record, _outcome(record))
    return DONE


def sft(recipe: Path, /, *settings: str, resume: bool = False, common: Shared = DEFAULTS) -> int:
    """Instruction-tune on chats, by a recipe: the same loop; every parameter trains unless the recipe says not.

    Parameters
    ----------
    recipe
        A YAML file of settings.
    settings
        Settings that replace the recipe's, e.g. optimizer.lr=2e-5.
    resume
        Go on from the run folder's newest checkpoint.
    """
    from blockexpand import training

    chosen = training.load_settings(recipe, settings, default_arm="full")
    record = training.sft(chosen, resume)
    show(common, record, _outcome(record))
    return DONE


def _outcome(record: RunRecord) -> str:
    out = record.settings.out
    lines = [
        f"{out}/model: {record.num_trainable_parameters:,} of {record.num_parameters:,} parameters trained, "
        f"{record.num_steps:,} steps, {record.tokens_per_second:,.0f} tokens/s"
    ]
    if record.best is not None and record.base is not None:
        lines.append(f"  domain loss  {record.base.domain:.4f} -> {record.best.domain:.4f} (step {record.best.step})")
        if record.best.general is not None and record.base.general is not None:
            lines.append(
                f"  general loss {record.base.general:.4f} -> {record.best.general:.4f} ({record.best.rise or 0:+.2%})"
            )
    return "\n".join(lines)
