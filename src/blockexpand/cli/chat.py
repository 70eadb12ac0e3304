"""The verb chat: talk to a model, in the terminal or on a page."""

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
    seed: int | None = None
    """For the same answers again."""
    system: str = ""
    """What the model is told first."""


DRAWN = Answers()


@Parameter(name="*", group=Group("Page", sort_key=51))
@dataclass(frozen=True, kw_only=True)
class OnPage:
    """Where the page is."""

    web: Flag = False
    """Serve a page, with the base's answers beside the expanded model's, instead of reading lines."""
    host: str = "127.0.0.1"
    """With --web: the address to listen on; other addresses than this machine's own let others in."""
    port: int = 7860
    """With --web: the port."""


NO_PAGE = OnPage()


def chat(
    model: Path,
    *,
    pack: Names = None,
    route: Literal["auto", "always"] = "always",
    plain: Flag = False,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    device: str = "auto",
    log: Path | None = None,
    answers: Annotated[Answers, Parameter(name="*")] = DRAWN,
    page: Annotated[OnPage, Parameter(name="*")] = NO_PAGE,
    common: Shared = DEFAULTS,
) -> int:
    """Talk to a model; /base answers as the base inside it.

    Parameters
    ----------
    model
        The folder of a checkpoint, expanded or not.
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

    from blockexpand import serving as chatting
    from blockexpand.serving.terminal import greet, typed

    sampling = chatting.Sampling(
        max_tokens=answers.max_tokens, temperature=answers.temperature, top_p=answers.top_p, seed=answers.seed
    )
    speaker = chatting.open_speaker(model, pack or (), dtype=dtype, device=device, plain=plain)
    if route == "auto":
        speaker.check_route()
    console = Console()
    if page.web:
        if not common.quiet:
            console.print(f"http://{page.host}:{page.port} (Ctrl-C ends)", markup=False, highlight=False)
        chatting.serve_page(
            speaker,
            chatting.Page(
                host=page.host,
                port=page.port,
                log=log,
                system=answers.system,
                sampling=sampling,
                routes=route == "auto",
            ),
        )
        return DONE
    conversation = chatting.Conversation(speaker, sampling, system=answers.system, log=log)
    conversation.routes = route == "auto"
    if not sys.stdin.isatty():
        chatting.talk(conversation, sys.stdin, console)
        return DONE
    greet(conversation, console)
    chatting.talk(conversation, typed(conversation, console), console)
    return DONE
