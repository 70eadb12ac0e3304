"""A conversation and its commands: what was said, by whom, and how the next answer is made.

In: lines that a person types. Out: for a command, what to say about it; for anything else, an answer in pieces.
Refuses unknown commands and values (ChatError), after which the conversation goes on as it was.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.errors import ChatError, nearest
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.speaker import Message, Speaker, Who

if TYPE_CHECKING:
    from blockexpand.packs.route import Route

HELP = """\
/base            answer as the base inside, and back again
/packs [NAMES]   the packs, and which are on; with names (or none) switch exactly these on
/route [HOW]     auto: of the packs that are on, the likelier one (or the base) answers each turn; always: all of them
/system [TEXT]   what the model is told first; without text, nothing
/set NAME=VALUE  max_tokens, temperature (0: likeliest), top_p, top_k, seed (none: new each time)
/reset           forget what was said
/help            this
/quit            end"""


class Conversation:
    """One person and one model; the base inside has a history of its own, so that the two can be compared."""

    def __init__(
        self, speaker: Speaker, sampling: Sampling | None = None, *, system: str = "", log: Path | None = None
    ) -> None:
        """`log`: a file that every turn is appended to, as JSON lines; without it nothing is kept."""
        self.speaker, self.sampling, self.system = speaker, sampling or Sampling(), system
        self.as_base = False
        self.routes = False
        """Whether each turn's packs are chosen by what was said."""
        self.route: Route | None = None
        """What was chosen for the latest answer; none where nothing was."""
        self.was_cut = False
        """Whether the latest answer ended at the limit of its tokens."""
        self.has_ended = False
        self._histories: dict[bool, list[Message]] = {False: [], True: []}
        self._log = log
        if log is not None:
            self._keep({"role": "system", "content": system})

    @property
    def turns(self) -> list[Message]:
        """What was said with whoever answers now."""
        return self._histories[self.as_base]

    @property
    def answerer(self) -> str:
        """Who answers now, in a word."""
        return "base" if self.as_base else self.speaker.facts.name

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to say about it.

        Raises:
            ChatError: there is no such command, or it does not take this.
            PackError: there is no such pack.
        """
        name, _, rest = line[1:].strip().partition(" ")
        commands = {
            "base": self._switch_base, "packs": self._switch_packs, "route": self._switch_route,
            "system": self._set_system, "set": self._set, "reset": self._reset, "help": lambda _: HELP,
            "quit": self._quit,
        }  # fmt: skip
        if name not in commands:
            raise ChatError(f"there is no command {'/' + name!r}; {nearest(name, commands)}; /help lists them")
        return commands[name](rest.strip())

    def reply(self, text: str) -> Generator[str]:
        """The answer to `text`, in pieces; it is remembered as far as it was read, and the question with it."""
        asked: Message = {"role": "user", "content": text}
        messages = [{"role": "system", "content": self.system}] if self.system else []
        turns, said, is_whole = self.turns, "", False
        self.route, self.was_cut = None, False
        who = Who(self.as_base, None, self._hear if self.routes and not self.as_base else None)
        prompt, stream = self.speaker.begin([*messages, *turns, asked], self.sampling)
        try:
            for piece in self.speaker.write(prompt, self.sampling, who, stream):
                said += piece
                yield piece
            is_whole, self.was_cut = True, stream.finish == "length"
        finally:
            if said or is_whole:
                answered: Message = {"role": "assistant", "content": said}
                turns += [asked, answered]
                self._keep(asked)
                self._keep(answered)

    def _hear(self, route: Route) -> None:
        self.route = route

    def told(self) -> str:
        """Which packs gave the latest answer, and why; nothing where none were chosen."""
        return describe_route(self.route) if self.route is not None else ""

    def _keep(self, message: Message) -> None:
        if self._log is None:
            return
        more: dict[str, Any] = {"as_base": self.as_base}
        if self.route is not None and message["role"] == "assistant":
            more["packs"] = list(self.route.names)
        keep(self._log, message | more)

    def _switch_base(self, rest: str) -> str:
        if rest:
            raise ChatError(f"/base takes nothing, was given {rest!r}; it switches to the base and back")
        if not self.speaker.facts.is_expanded:
            raise ChatError(
                f"{self.speaker.facts.name} holds no base to answer as; expected an expanded model or packs"
            )
        self.as_base = not self.as_base
        return "answering as the base" if self.as_base else "answering as the expanded model"

    def _switch_packs(self, rest: str) -> str:
        names = rest.replace(",", " ").split()
        if names:
            self.speaker.switch_on([] if names == ["none"] else names)
        on = self.speaker.packs_on
        return "packs: " + (
            ", ".join(f"{name} ({'on' if name in on else 'off'})" for name in self.speaker.packs) or "none"
        )

    def _switch_route(self, rest: str) -> str:
        if rest not in ("", "auto", "always"):
            raise ChatError(f"/route was given {rest!r}, expected auto, always or nothing, which says how it is")
        if rest == "auto":
            self.speaker.check_route()
        self.routes = rest == "auto" if rest else self.routes
        how = "each turn's packs are chosen by what was said" if self.routes else "the packs that are on answer"
        return f"{how}; the latest answer: {self.told()}" if self.route is not None else how

    def _set_system(self, rest: str) -> str:
        self.system = rest
        return "the model is told this first" if rest else "the model is told nothing first"

    def _set(self, rest: str) -> str:
        name, equals, value = rest.partition("=")
        if not equals:
            raise ChatError(f"/set was given {rest!r}, expected NAME=VALUE, e.g. /set temperature=0.5")
        self.sampling = self.sampling.changed(name.strip(), value.strip())
        return ", ".join(f"{key}={value}" for key, value in vars(self.sampling).items())

    def _reset(self, _rest: str) -> str:
        for turns in self._histories.values():
            turns.clear()
        return "forgotten"

    def _quit(self, _rest: str) -> str:
        self.has_ended = True
        return "bye"


def keep(log: Path, entry: Mapping[str, Any] | None) -> None:
    """Append one line of JSON to a log; with None nothing, to see whether it can be.

    Raises:
        ChatError: it cannot be written.
    """
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n" if entry is not None else "")
    except OSError as error:
        raise ChatError(f"the log {log} cannot be written: {error.strerror}; choose another --log") from None


def describe_route(route: Route) -> str:
    """The packs that were chosen, and each candidate's nats per token of what was said."""
    from blockexpand.records.pack import name_of

    chosen = name_of(route.names)
    if not route.nats:
        return f"{chosen} (too little was said to choose by)"
    nats = ", ".join(f"{name_of(names)} {value:.2f}" for names, value in route.nats.items())
    return f"{chosen} ({nats} nats a token)"
