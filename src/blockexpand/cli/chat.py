"""The verb chat: talk to a model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared
from blockexpand.serving.sampling import Sampling

Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Speaking:
    """Who speaks, and where."""

    pack: Annotated[list[Path] | None, Parameter(negative="")] = None
    """A pack to put on the model; may be given several times."""
    route: Literal["auto", "always"] = "always"
    """always: all packs are on; auto: each turn (of `serve`, each request) the base answers, or the pack that finds
    likelier what was said."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What the weights are loaded as; auto: what the checkpoint has."""
    device: str = "auto"
    """Where the model runs: auto (the accelerator where there is one), cpu, or e.g. cuda."""
    log: Path | None = None
    """A file to append what is said to; without it nothing is kept."""


ALL_PACKS, DRAWN = Speaking(), Sampling()


def chat(
    model: str,
    *,
    plain: Flag = False,
    system: str = "",
    speaking: Annotated[Speaking, Parameter(name="*")] = ALL_PACKS,
    sampling: Annotated[Sampling, Parameter(name="*", group=Group("Answers", sort_key=50))] = DRAWN,
    common: Shared = DEFAULTS,
) -> int:
    """Talk to a model in the terminal; /base answers as the base inside it. `serve` has a page for the same.

    Parameters
    ----------
    model
        A model, expanded or not: a folder, a run, a GGUF file, or a hub id.
    plain
        Complete text instead of talking, for models without a chat template.
    system
        What the model is told first.
    """
    import sys

    from rich.console import Console

    from blockexpand import serving
    from blockexpand.serving.terminal import greet, typed

    speaker = serving.open_speaker(
        model, speaking.pack or (), dtype=speaking.dtype, device=speaking.device, plain=plain
    )
    if speaking.route == "auto":
        speaker.check_route()
    console = Console()
    conversation = serving.Conversation(speaker, sampling, system=system, log=speaking.log)
    conversation.routes = speaking.route == "auto"
    if not sys.stdin.isatty():
        serving.talk(conversation, sys.stdin, console)
        return DONE
    if not common.quiet:
        greet(conversation, console)
    serving.talk(conversation, typed(conversation, console), console)
    return DONE
