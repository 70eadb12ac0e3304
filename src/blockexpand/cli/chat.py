"""The verb chat: talk to a model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared

Names = Annotated[list[Path] | None, Parameter(negative="")]
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("Answers", sort_key=50))
@dataclass(frozen=True, kw_only=True)
class Answers:
    """How answers are drawn."""

    max_tokens: int = 256
    """Of an answer, at most."""
    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_p: float = 0.95
    """Only the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Only so many of the likeliest tokens; 0: all."""
    seed: int | None = None
    """For the same answers again."""
    system: str = ""
    """What the model is told first."""


DRAWN = Answers()


def chat(
    model: str,
    *,
    pack: Names = None,
    route: Literal["auto", "always"] = "always",
    plain: Flag = False,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    device: str = "auto",
    log: Path | None = None,
    answers: Annotated[Answers, Parameter(name="*")] = DRAWN,
    common: Shared = DEFAULTS,
) -> int:
    """Talk to a model in the terminal; /base answers as the base inside it. `serve` has a page for the same.

    Parameters
    ----------
    model
        A model, expanded or not: a folder, a run, a GGUF file, or a hub id.
    pack
        A pack to put on the model; may be given several times.
    route
        always: all packs are on; auto: each turn the base answers, or the pack that finds likelier what was said.
    plain
        Complete text instead of talking, for models without a chat template.
    dtype
        What the weights are loaded as; auto: what the checkpoint has.
    device
        Where the model runs: auto (the accelerator where there is one), cpu, or e.g. cuda.
    log
        A file to append what is said to; without it nothing is kept.
    """
    import sys

    from rich.console import Console

    from blockexpand import serving
    from blockexpand.serving.terminal import greet, typed

    sampling = serving.Sampling(
        max_tokens=answers.max_tokens,
        temperature=answers.temperature,
        top_p=answers.top_p,
        top_k=answers.top_k,
        seed=answers.seed,
    )
    speaker = serving.open_speaker(model, pack or (), dtype=dtype, device=device, plain=plain)
    if route == "auto":
        speaker.check_route()
    console = Console()
    conversation = serving.Conversation(speaker, sampling, system=answers.system, log=log)
    conversation.routes = route == "auto"
    if not sys.stdin.isatty():
        serving.talk(conversation, sys.stdin, console)
        return DONE
    if not common.quiet:
        greet(conversation, console)
    serving.talk(conversation, typed(conversation, console), console)
    return DONE
