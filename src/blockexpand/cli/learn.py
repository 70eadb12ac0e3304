"""The verb learn: the whole job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.records.learn import Arm, parse_arms, say_outcome

Several = Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)]


def learn(
    model: str,
    data: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    keep: str = "1%",
    general: Several = None,
    minutes: float | None = None,
    tokens: int | None = None,
    blocks: int | None = None,
    arm: Arm = "blocks",
    seed: int = 0,
    out: Path | None = None,
    device: str | None = None,
    against: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    common: Shared = DEFAULTS,
) -> int:
    """Teach a model your data, and keep what it knew: one command from both to a model, with a verdict.

    Parameters
    ----------
    model
        A model folder, a run, a GGUF file, or a hub id like org/name.
    data
        Files, folders, globs or data sets of the hub: texts, code, chats, or tables; reviews.csv:body names the column.
    keep
        How much general loss may rise, e.g. 1%; or for each kind of general text, e.g. prose=0.5%,chats=1%.
    general
        Text like what the model knew, as DATA; without it the model writes it itself.
    minutes
        How long it may take here; without it and --tokens, a few times through the data.
    tokens
        Instead: how many tokens of the data it learns from.
    blocks
        How many new blocks; a share of the model's depth if not given.
    arm
        What trains: new blocks, everything (full), or adapters (lora).
    seed
        Of what is drawn.
    out
        The folder to write; MODEL-learnt if not given. The same command goes on with what is in it.
    device
        Where it runs: cpu, cuda, ...; what there is if not given.
    against
        Arms to spend the same tokens on besides, each with the same retention: e.g. full,lora.
    dry_run
        Say what would be done and how long it would take, and stop.
    """
    import blockexpand

    record = blockexpand.learn(
        model,
        data,
        keep=keep,
        general=general,
        minutes=minutes,
        tokens=tokens,
        blocks=blocks,
        arm=arm,
        seed=seed,
        out=out,
        device=device,
        against=parse_arms(against),
        dry_run=dry_run,
    )
    show(common, record, "\n".join(say_outcome(record)))
    return DONE if record.passed else FAILED
