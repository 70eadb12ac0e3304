"""The journal of an unfinished evaluation: each answer of the model, on the disk as soon as it is there.

In: answers, in whatever order the model gives them (lm-evaluation-harness' hook for caches). Out: `<out>.partial`
beside the output, with one line an answer. A run that goes on asks only what has no answer yet; a line that a kill cut
short is dropped, and so are errors of a server, which are asked again. Refused: a journal of another model, suite or
setting, a folder that another process is filling, and a journal without `resume`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections import defaultdict, deque
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Self

from blockexpand.digests import digest_json
from blockexpand.errors import EvaluationError
from blockexpand.records import read_json, write_json

_ANSWERS, _IDENTITY = "answers.jsonl", "evaluation.json"


class Likelihood(tuple):
    """A log-likelihood and whether it is the greedy continuation, as the harness has it, with what it leaves out."""

    nats: float
    """Natural logarithm of the continuation's probability."""
    greedy: bool
    num_tokens: int
    """Tokens of the continuation."""

    def __new__(cls, nats: float, greedy: bool, num_tokens: int) -> Self:
        """A pair with a number beside it."""
        made = super().__new__(cls, (nats, greedy))
        made.nats, made.greedy, made.num_tokens = nats, greedy, num_tokens
        return made


class Given:
    """One answer of the model."""

    def __init__(self, line: dict[str, Any]) -> None:
        """A line of the journal."""
        value = line.get("value")
        self.value: Any = Likelihood(*value) if line["method"] == "loglikelihood" and value is not None else value
        self.seconds: float = line["seconds"]
        """Its share of the pass it was in."""
        self.error: str | None = line.get("error")
        self.cut: int = line.get("cut", 0)
        """Tokens of the prompt that did not fit and were left out at its beginning."""
        self.route: str | None = line.get("route")
        """The packs that the question was given, where they were chosen."""


class Journal:
    """Answers by question."""

    def __init__(self, folder: Path) -> None:
        """What `folder` holds already; errors are not answers."""
        self._path = folder / _ANSWERS
        self._answers: dict[str, deque[Given]] = defaultdict(deque)
        self._adding = threading.Lock()
        self.num_found = 0
        self._read()
        self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def _read(self) -> None:
        if not self._path.is_file():
            return
        whole = self._path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            with open(self._path, "r+b") as stream:
                stream.truncate(len(kept))
        for text in kept.decode("utf-8").splitlines():
            line = json.loads(text)
            if not line.get("error"):
                self._answers[line["key"]].append(Given(line))
                self.num_found += 1

    def add(self, key: str, method: str, value: Any, **more: Any) -> None:
        """Write an answer down; `more`: seconds, error, cut, route."""
        line = {"key": key, "method": method, "value": value, "seconds": 0.0, **more}
        with self._adding:
            self._stream.write(json.dumps(line, ensure_ascii=True) + "\n")
            self._stream.flush()
            self._answers[key].append(Given(line))

    def num_answers(self, key: str) -> int:
        """Answers to a question that nobody has taken."""
        return len(self._answers[key])

    def take(self, key: str) -> Given:
        """The next answer to a question; each is given out once."""
        return self._answers[key].popleft()

    def close(self) -> None:
        """No more answers."""
        self._stream.close()


def key_of(task: str, method: str, arguments: Iterable[Any]) -> str:
    """The digest of a question: of what the model is shown, the task and how it is asked."""
    return digest_json([task, method, *arguments])


@contextlib.contextmanager
def journal_of(out: Path, identity: str, *, resume: bool, overwrite: bool) -> Generator[Journal]:
    """The journal beside `out`; it goes when the block ends without an error.

    Raises:
        EvaluationError: it belongs to another evaluation, or to one that nobody said to go on with.
    """
    folder = out.with_name(out.name + ".partial")
    if folder.exists():
        _check_folder(folder, identity, resume=resume, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        write_json(folder / _IDENTITY, {"identity": identity})
        journal = Journal(folder)
        try:
            yield journal
        finally:
            journal.close()
    shutil.rmtree(folder)


def _check_folder(folder: Path, identity: str, *, resume: bool, overwrite: bool) -> None:
    if not (folder / _IDENTITY).is_file():
        if any(folder.iterdir()):
            raise EvaluationError(f"{folder} is not an unfinished evaluation; move it away, or choose another --out")
        return
    if resume:
        if read_json(folder / _IDENTITY).get("identity") != identity:
            raise EvaluationError(
                f"{folder} holds an unfinished evaluation of another model, other suites or settings; run with what it "
                "was begun with, or begin anew with --overwrite"
            )
        return
    if not overwrite:
        raise EvaluationError(
            f"{folder} holds an unfinished evaluation; go on with --resume, or begin anew with --overwrite"
        )
    shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"{folder} is being filled by another process; wait for it, or stop it") from None
        yield
    finally:
        os.close(handle)
