"""The errors people see.

One base class, one child a room. A message is one line in four parts: what happened, the value,
what was expected, what to do next. The command line prints it and exits with the class's code;
our own mistakes are `assert`s instead, and keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_CHARACTERS = 1200
"""A message is a line that somebody reads, whatever the value in it was."""


class BlockexpandError(Exception):
    """Something a person can mend: bad input, a bad file, a full disk."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        """`message`, made one line of bearable length whatever the values in it are."""
        super().__init__(_one_line(str(message)))


def _one_line(text: str) -> str:
    """The message in one line that any terminal takes: values come from files, and files hold anything."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) > _MOST_CHARACTERS:
        # What happened stands at its beginning, what to do at its end.
        kept = _MOST_CHARACTERS // 2
        text = f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters) ... {text[-kept:]}"
    return text


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after it was saved."""

    exit_code = 130


class Preempted(Interrupted):
    """The system asked the run to end (SIGTERM), and it was saved: nothing has gone wrong."""

    exit_code = 0


class UsageError(BlockexpandError):
    """The command line was given something it cannot take."""


class RecordError(BlockexpandError):
    """A recipe, plan or record has the wrong keys, types or version."""


class StagingError(BlockexpandError):
    """An output cannot be put where it was asked for."""


class FamilyError(BlockexpandError):
    """The model's family is unknown, or known not to be expandable."""


class CheckpointError(BlockexpandError):
    """A checkpoint on disk is broken, incomplete or not in a format we read."""


class PlanError(BlockexpandError):
    """The blocks asked for cannot be placed in this model."""


class ExpansionError(BlockexpandError):
    """A plan and a checkpoint do not belong together."""


class LiveError(BlockexpandError):
    """A loaded model cannot be expanded, bypassed or detached as asked."""


class DeviceError(BlockexpandError):
    """The device asked for is not there, or has too little memory."""


class CorpusError(BlockexpandError):
    """A source of text cannot be read, or leaves nothing to train on."""


class PackError(BlockexpandError):
    """A pack is broken, or does not belong to the model it is to be attached to."""


class EndpointError(BlockexpandError):
    """The address of a model is none, or nobody answers there."""


class TrainingError(BlockexpandError):
    """A run cannot start, go on or resume."""


class LearnError(BlockexpandError):
    """`learn` cannot be done as asked, or its output is another's."""


class EvaluationError(BlockexpandError):
    """A model cannot be measured on the data given."""


class AgentError(BlockexpandError):
    """Episodes or judgements cannot be run, read or replayed."""


class ComparisonError(BlockexpandError):
    """The arms of a comparison are unequal, or their results do not fit together."""


class SandboxError(BlockexpandError):
    """Model-written code cannot be isolated here, or not as asked."""


class ChatError(BlockexpandError):
    """A model cannot be talked to, or not as asked."""


class ServingError(BlockexpandError):
    """A model cannot be served, or a request to the server not be answered as asked."""

    def __init__(
        self, message: object, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        """What a client is told beside the message: the HTTP status, the field it is about, OpenAI's word for it."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class ReportError(BlockexpandError):
    """There is nothing to report on, or not in a format we read."""


class PublishError(BlockexpandError):
    """A model or pack is not fit to be given to others, or the hub does not take it."""


class DemonstrationError(BlockexpandError):
    """The demo cannot run where it was asked to."""


_MOST_NAMES = 30
"""More would not be a line that anybody reads."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The words to append when `name` is unknown: the nearest known names, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if len(names) > _MOST_NAMES:
        return f"known are {len(names)}, from {names[0]} to {names[-1]}"
    return "known: " + ", ".join(names)
