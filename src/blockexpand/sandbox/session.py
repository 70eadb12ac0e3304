"""A Python in the sandbox that stays between pieces of code: what one piece made is there in the next.

In: limits for the whole session, then pieces of source text with their own limit of time and output. Out: an `Outcome`
for each; the value of a piece's last expression is printed as at Python's prompt. A piece that does not stop when
interrupted, ends the interpreter, or takes more memory or processes than there may be, ends the session: the next piece
finds a new one with nothing in it, and its outcome says so. Raises SandboxError where `run_program` does.
"""

from __future__ import annotations

import os
import select
import time

from blockexpand.sandbox.launch import Launch, Text, understand
from blockexpand.sandbox.limits import Limits, Outcome, Status

_STOP_SECONDS = 2.0
"""What an interrupted piece is given to stop before the session is ended."""

_FLOOD = 50
"""A piece that prints this many times what is kept of it is stopped: it will not end by itself."""

ANEW = "The session was started again: names, imports and files of earlier code are gone.\n"
"""Stands at the head of the stderr of the first piece after an ended session."""


class Session:
    """A persistent Python behind the same walls as `run_program`. A context manager; started by its first piece."""

    def __init__(self, limits: Limits | None = None, unsafe: bool = False) -> None:
        """`limits` hold for the session as a whole, save its times and output, which `run` limits for each piece."""
        self._limits, self._unsafe = limits or Limits(), unsafe
        self._launch: Launch | None = None
        self._channel = (-1, -1)
        self._is_new = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it and everything in it; harmless when it has ended."""
        if self._launch is None:
            return
        for descriptor in self._channel:
            os.close(descriptor)
        self._launch.close()
        self._launch = None

    def run(self, code: str, wall_seconds: float = 30.0, output_chars: int = 2000) -> Outcome:
        """Runs `code` after all that ran before. Keeps the first `output_chars` of its stdout and of its stderr.

        Status timeout: it was interrupted after `wall_seconds`, the names it had made are kept; output: it printed
        without end and was interrupted; error: it raised; killed, memory: the session ended with it.
        """
        assert wall_seconds > 0, wall_seconds
        assert output_chars > 0, output_chars
        begun = time.monotonic()
        notice = ""
        if self._launch is None:
            notice, self._is_new = (ANEW if self._is_new else ""), True
            self._start()
        assert self._launch is not None
        piece = _Piece(self._launch, self._channel[0], output_chars)
        piece.drain()
        try:
            piece.feed(self._channel[1], code.encode("utf-8", "surrogatepass"), begun + wall_seconds)
            status = piece.wait(begun + wall_seconds)
        except BrokenPipeError:
            status = piece.died()
        if piece.has_ended:
            self.close()
        return Outcome(
            status=status,
            exit_code=None if piece.has_ended or status in ("timeout", "output") else int(status != "ok"),
            stdout=piece.stdout.take(),
            stderr=(notice + piece.stderr.take() + piece.traceback)[: output_chars + len(notice)],
            seconds=time.monotonic() - begun,
        )

    def _start(self) -> None:
        inward, to_program = os.pipe()
        from_program, outward = os.pipe()
        try:
            self._launch = Launch(self._limits, unsafe=self._unsafe, channel=(inward, outward))
        except BaseException:
            os.close(to_program)
            os.close(from_program)
            raise
        finally:
            os.close(inward)
            os.close(outward)
        os.set_blocking(to_program, False)
        self._channel = (from_program, to_program)


class _Piece:
    """One piece of code under way: what it prints, and how it ends."""

    def __init__(self, launch: Launch, channel: int, output_chars: int) -> None:
        """`channel` is where the interpreter tells that it is done."""
        self._launch, self._channel, self._kept = launch, channel, output_chars
        self._clear()
        self.traceback = ""
        self.has_ended = False
        self._told, self._report = b"", b""

    def _clear(self) -> None:
        self.stdout, self.stderr = Text(self._kept), Text(self._kept)
        self._streams = {self._launch.stdout: self.stdout, self._launch.stderr: self.stderr}
        self._read_bytes = 0

    def drain(self) -> None:
        """Drops what earlier code printed after it had ended, and answers that nobody asked for."""
        while self._read(0.0):
            if self.has_ended or self._read_bytes > _FLOOD * self._kept:
                break
        self._clear()
        self._told = b""

    def feed(self, descriptor: int, code: bytes, deadline: float) -> None:
        """Sends the code. The interpreter may have been made to read nothing, so nothing waits for it for ever."""
        view = memoryview(len(code).to_bytes(8, "big") + code)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while view and deadline > time.monotonic():
            if poll.poll((deadline - time.monotonic()) * 1000):
                view = view[os.write(descriptor, view) :]

    def wait(self, deadline: float) -> Status:
        """How it ended. One that passes its time or floods is interrupted first, and if that does nothing, ended."""
        status: Status = "ok"
        while not self._is_done():
            if self.has_ended:
                return self.died()
            left = deadline - time.monotonic()
            flooding = self._read_bytes > _FLOOD * self._kept
            if left > 0 and (status != "ok" or not flooding):
                self._read(left)
                continue
            if status != "ok":
                self.has_ended = True
                return status
            status, deadline = ("output" if flooding else "timeout"), time.monotonic() + _STOP_SECONDS
            self._launch.interrupt()
        while self._read(0.0):  # what it printed lies in the pipes before it says that it is done
            if self._read_bytes > 2 * _FLOOD * self._kept:
                break
        return status if status != "ok" or not self.traceback else "error"

    def _is_done(self) -> bool:
        """Whether the interpreter has told the end; it runs the piece and may say anything, so anything is taken."""
        size = 8 + int.from_bytes(self._told[:8], "big") if len(self._told) >= 8 else 1 << 62
        if len(self._told) < size:
            return False
        self.traceback = self._told[8:size].decode("utf-8", "replace")
        return True

    def _read(self, seconds: float) -> bool:
        """Reads what is there, waiting at most `seconds` for something to be; whether there was."""
        poll = select.poll()
        for descriptor in (*self._streams, self._channel, self._launch.report):
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(seconds * 1000)]
        for descriptor in ready:
            data = os.read(descriptor, 1 << 16)
            self._read_bytes += len(data)
            if descriptor in self._streams:
                self._streams[descriptor].add(data)
            elif descriptor == self._launch.report:
                self._report += data
                self.has_ended |= not data
            else:
                self._told += data
        return bool(ready) and not self.has_ended

    def died(self) -> Status:
        """How the session ended, read from the warden's last words."""
        while self._read(1.0):
            pass
        self.has_ended = True
        report = understand(self._report, self.stderr.take())
        return report["status"] if report["status"] != "ended" else "killed"
