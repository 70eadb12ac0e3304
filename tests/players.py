"""What episodes are played with in tests: scripted models, and a Python that stands in for the sandbox."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from blockexpand.agents.tools import Ran
from blockexpand.evaluation.endpoint import Answer, Message, Request
from blockexpand.records.agents import Task

Script = Callable[[Sequence[Message]], str | Answer]


@dataclass
class Scripted:
    """A model that does what a function says."""

    script: Script
    asked: list[list[Request]] = field(default_factory=list)
    """The batches it was asked."""

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked.append(list(requests))
        said = [self.script(request.messages) for request in requests]
        return [one if isinstance(one, Answer) else Answer(text=one) for one in said]


def lines(*outputs: str | Answer) -> Script:
    """A script that says these things, one a turn."""

    def script(messages: Sequence[Message]) -> str | Answer:
        return outputs[sum(message["role"] == "assistant" for message in messages)]

    return script


class _Namespace:
    """A persistent Python in this process: for code that the tests themselves wrote."""

    def __init__(self) -> None:
        self._names: dict[str, object] = {}

    def __call__(self, code: str) -> Ran:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            try:
                exec(code, self._names)
            except ZeroDivisionError as error:
                return Ran(status="error", text=f"{stream.getvalue()}ZeroDivisionError: {error}")
        return Ran(status="ok", text=stream.getvalue())


@dataclass
class PlainTools:
    """Runs the tests' own code in this process; counts what is open."""

    opened: int = 0
    closed: int = 0

    @contextlib.contextmanager
    def shell(self) -> Generator[_Namespace]:
        self.opened += 1
        try:
            yield _Namespace()
        finally:
            self.closed += 1

    def passes(self, program: str, tests: str) -> bool:
        try:
            exec(f"{program}\n{tests}", {})
        except (AssertionError, NameError, SyntaxError, TypeError):
            return False
        return True

    def describe(self) -> str:
        return "nothing: the tests' own code"


def solver(task_by_prompt: dict[str, Task]) -> Script:
    """A model that runs a puzzle's program in its first turn and proposes what it printed in its second."""

    def script(messages: Sequence[Message]) -> str:
        if len(messages) == 1:
            task = next(t for prompt, t in task_by_prompt.items() if messages[0]["content"].endswith(prompt))
            return f"<thought>Work it out.</thought>\n<execute>\n{task.program}\n</execute>"
        printed = messages[-1]["content"].removeprefix("Observation:\n").rpartition("\n(Turns left")[0]
        return f"<thought>So it is.</thought>\n<solution>{printed}</solution>"

    return script
