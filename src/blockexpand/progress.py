"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log.

Silent unless the command line switches it on, so that the Python functions never print by themselves.
Everything goes to standard error; standard output belongs to results and `--json`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, Protocol

from blockexpand.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_SECONDS = 15.0

Mode = Literal["silent", "terminal", "lines"]
_MODE: ContextVar[Mode] = ContextVar("blockexpand_progress", default="silent")


class Bar(Protocol):
    """What a piece of long work reports to."""

    def advance(self, amount: float, note: str = "", total: float | None = None) -> None:
        """`amount` more units are done; `note` replaces the words at the bar's end, `total` the number of all."""
        ...


@contextlib.contextmanager
def progress_in(mode: Mode) -> Generator[None]:
    """Show progress in the given way inside this context; a child process passes on its parent's."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


def progress_on_stderr() -> contextlib.AbstractContextManager[None]:
    """Show progress inside this context: a live bar when standard error is a terminal, lines otherwise."""
    return progress_in("terminal" if sys.stderr.isatty() else "lines")


def progress_mode() -> Mode:
    """How progress is shown here."""
    return _MODE.get()


def say(text: str) -> None:
    """One line for a person who follows the work; nothing when progress is silent."""
    if _MODE.get() != "silent":
        print(text, file=sys.stderr, flush=True)


class _SilentBar:
    def advance(self, amount: float, note: str = "", total: float | None = None) -> None:
        del amount, note, total


class _TerminalBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float, note: str = "", total: float | None = None) -> None:
        self._progress.update(self._task, advance=amount)
        if total is not None:
            self._progress.update(self._task, total=total)
        if note:
            self._progress.update(self._task, note=note)


class _LineBar:
    def __init__(self, title: str, total: float, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._start = 0.0, time.monotonic()
        self._last = self._start
        self._note = ""

    def advance(self, amount: float, note: str = "", total: float | None = None) -> None:
        self._done += amount
        self._total = self._total if total is None else total
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_SECONDS:
            self._last = now
            rate = self._done / max(now - self._start, 1e-9)
            where = _amount(self._done, self._unit)
            if self._total:
                left = (self._total - self._done) / rate if rate > 0 else 0.0
                where = f"{100 * self._done / self._total:3.0f}%  {format_seconds(left)} left"
            self._print(f"{where}  {_rate(rate, self._unit)}")

    def finish(self) -> None:
        if not self._done:  # it was there already
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = _rate(self._done / seconds, self._unit)
        self._print(f"{_amount(self._done, self._unit)} in {format_seconds(seconds)}  {rate}")

    def _print(self, words: str) -> None:
        print(f"  {self._title}  {words}  {self._note}".rstrip(), file=sys.stderr, flush=True)


def _rate(rate: float, unit: str) -> str:
    return f"{_amount(rate, unit)}/s" if unit == "B" or rate >= 10 else f"{rate:.2g} {unit}/s"


def _amount(done: float, unit: str) -> str:
    return format_bytes(done) if unit == "B" else f"{format_count(done)} {unit}"


@contextlib.contextmanager
def bar(title: str, total: float, unit: str) -> Generator[Bar]:
    """A bar over `total` units, e.g. `bar("blocks lr 3e-3", 200_000, "tokens")`; 0 = nobody knows how many."""
    mode = _MODE.get()
    if mode == "silent":
        yield _SilentBar()
    elif mode == "lines":
        lines = _LineBar(title, total, unit)
        yield lines
        lines.finish()
    else:
        with _terminal_bar(title, total, unit) as live:
            yield live


@contextlib.contextmanager
def _terminal_bar(title: str, total: float, unit: str) -> Generator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.finished_speed or task.speed or 0.0, unit), style="cyan")

    class LeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.finished:
                return Text(format_seconds(task.elapsed or 0) + " taken", style="dim")
            return Text(
                f"{format_seconds(task.time_remaining)} left" if task.time_remaining is not None else "", style="dim"
            )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        RateColumn(),
        LeftColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=8) as progress:
        task = progress.add_task(title, total=total or None, note="")
        yield _TerminalBar(progress, task)
        if not progress.tasks[0].completed:  # it was there already
            progress.update(task, visible=False)
