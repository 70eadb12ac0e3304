"""The work on both cores: processes of our own program, each fed by a thread, results in the order asked for.

In: tasks of `worker.Worker`. Out: futures. Small work is done at once in this process, because a new one costs
a third of a second; what comes after the first megabytes goes to the processes. They are plain programs rather
than a pool of `multiprocessing`: those import the caller's script again, and outlive a killed parent.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, cast

from blockexpand.corpus.documents import Document
from blockexpand.corpus.worker import Job, Look, Tokens, Worker
from blockexpand.errors import CorpusError

_ALONE_CHARS = 4_000_000
"""Of text that is worked on without further processes: about what one core does while two processes start."""
_PACKAGE = Path(__file__).parents[2]


class Workers:
    """A context in which tasks are worked on."""

    def __init__(self, job: Job, num_processes: int, alone_chars: int = _ALONE_CHARS) -> None:
        """Nothing is started yet."""
        self._job, self._num_processes, self._alone_chars = job, num_processes, alone_chars
        self._alone = Worker(job)
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._started: list[subprocess.Popen[bytes]] = []
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """End every process."""
        del kind, error, trace
        for process in self._started:
            process.kill()  # they hold nothing that could be lost
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._started:
            process.communicate()

    @property
    def num_at_once(self) -> int:
        """How many tasks should be under way: two for each process, so that none waits."""
        return 2 * self._num_processes + 1

    def look(self, source: int, batch: Sequence[Document]) -> Future[list[Look]]:
        """`Worker.look`."""
        return self._do("look", (source, batch), sum(len(d.text) for d in batch))

    def encode(self, batch: Sequence[Document]) -> Future[Tokens]:
        """`Worker.encode`."""
        return self._do("encode", (batch,), sum(len(d.text) for d in batch))

    def _do(self, name: str, arguments: tuple[Any, ...], num_chars: int) -> Future[Any]:
        self._alone_chars -= num_chars
        if self._num_processes < 2 or self._alone_chars > 0:
            done: Future[Any] = Future()
            done.set_result(self._alone.look(*arguments) if name == "look" else self._alone.encode(*arguments))
            return done
        if self._threads is None:
            self._start()
        assert self._threads is not None
        return self._threads.submit(self._ask, name, arguments)

    def _start(self) -> None:
        # One core each: threads of the tokenizer's own in every process would get into each other's way.
        program = (
            f"import os, sys; os.environ['TOKENIZERS_PARALLELISM'] = 'false'; sys.path.insert(0, {str(_PACKAGE)!r}); "
            "from blockexpand.corpus.worker import main; main()"
        )
        self._threads = ThreadPoolExecutor(self._num_processes, thread_name_prefix="prepare")
        for _ in range(self._num_processes):
            process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._started.append(process)
            self._idle.put(process)
        for process in self._started:
            _send(process, self._job)

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> Any:
        process = self._idle.get()
        try:
            _send(process, (name, arguments))
            return pickle.load(cast(Any, process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError):
            process.kill()
            code = process.wait()
            raise CorpusError(
                f"a process that prepares documents ended early, with {code}; if it was killed for its memory, use "
                "fewer --workers or shorter documents, and go on with --resume"
            ) from None
        finally:
            self._idle.put(process)


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None, "standard input is a pipe"
    pickle.dump(value, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()
