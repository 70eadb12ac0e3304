"""Progress: silent for the library, lines in a log, and never on standard output."""

from __future__ import annotations

import pytest

from blockexpand import progress


def test_the_library_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.bar("work", 10, "tokens") as bar:
        bar.advance(10, "note")
    progress.say("words")
    assert capfd.readouterr() == ("", "")


def test_a_log_gets_lines_with_rate_and_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_in("lines"), progress.bar("work", 400, "tokens") as bar:
        now[0] = 5.0
        bar.advance(50)
        now[0] = 20.0
        bar.advance(50, "loss 3.2")
        now[0] = 80.0
        bar.advance(300)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "  work   25%  1 min 00 s left  5 tokens/s  loss 3.2",
        "  work  100%  0.00 s left  5 tokens/s  loss 3.2",
        "  work  400 tokens in 1 min 20 s  5 tokens/s  loss 3.2",
    ]


def test_bytes_are_told_in_megabytes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_in("lines"), progress.bar("copy", 0, "B") as bar:
        now[0] = 2.0
        bar.advance(5_000_000)
    assert capfd.readouterr().err == "  copy  5.00 MB in 2.0 s  2.50 MB/s\n"


def test_a_terminal_gets_a_bar_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.progress_in("terminal"), progress.bar("work", 10, "tokens") as bar:
        bar.advance(10, "done")
    out, err = capfd.readouterr()
    assert out == ""
    assert "work" in err
    assert "100%" in err


def test_the_mode_ends_with_its_context() -> None:
    with progress.progress_in("lines"):
        assert progress.progress_mode() == "lines"
    assert progress.progress_mode() == "silent"
