"""The chat in a terminal, or from a pipe: a line is a turn, answers stream, Ctrl-C stops an answer.

In: lines, a conversation. Out: what is printed; a dim line before each answer says whose it is, and one behind it
where it was cut at its limit. From a pipe there are no prompts, no such lines and no colours, so that the output is the
answers and nothing else but what commands say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console

from blockexpand.errors import BlockexpandError
from blockexpand.serving.conversation import Conversation


def talk(conversation: Conversation, lines: Iterable[str], console: Console) -> None:
    """Answers `lines` until they end or one says /quit. Errors in a turn are shown, and the next turn is taken."""
    for line in lines:
        text = line.strip()
        if not text:
            continue
        try:
            if text.startswith("/"):
                console.print(conversation.command(text), style="dim", markup=False, highlight=False, soft_wrap=True)
            else:
                _say(conversation, text, console)
        except BlockexpandError as error:
            console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        if conversation.has_ended:
            return


def _say(conversation: Conversation, text: str, console: Console) -> None:
    reply, is_first = conversation.reply(text), console.is_terminal
    try:
        for piece in reply:
            if is_first:
                who = conversation.told() or conversation.answerer
                console.print(f"{who}:", style="dim", markup=False, highlight=False, soft_wrap=True)
            is_first = False
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            console.file.flush()
    except KeyboardInterrupt:
        reply.close()
        console.print(" (stopped)", style="dim", end="")
    if conversation.was_cut and console.is_terminal:
        limit = conversation.sampling.max_tokens
        console.print(f" (cut at {limit:,} tokens; /set max_tokens=N)", style="dim", end="", highlight=False)
    console.print()


def typed(conversation: Conversation, console: Console) -> Iterator[str]:
    """Lines that a person types at a prompt that says who will answer; ends with Ctrl-D, or Ctrl-C at the prompt."""
    while True:
        try:
            yield console.input("[bold]base>[/] " if conversation.as_base else "[bold]>[/] ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return


def greet(conversation: Conversation, console: Console) -> None:
    """Who is there, what is on, what it gained and forgot."""
    facts = conversation.speaker.facts
    new = sum(map(bool, facts.blocks))
    lines = [f"{facts.name}: {len(facts.blocks)} blocks, {new} of them new" if facts.blocks else facts.name]
    lines += [conversation.command("/packs")] if conversation.speaker.packs else []
    lines += [*facts.measured, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends"]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False)
