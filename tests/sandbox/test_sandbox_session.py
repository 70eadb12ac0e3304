# ruff: noqa: E501 (programs as data)
"""A Python that stays: what one piece made is there in the next, whatever a piece does the session answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import SandboxError
from blockexpand.sandbox import Limits, Session, describe, run_program
from blockexpand.sandbox.inside import walls
from blockexpand.sandbox.session import ANEW


def test_names_stay_and_the_last_value_is_shown(box: Any) -> None:
    pieces = [
        "x = 3\nx + 1",
        "import math\ndef g(): return x * 2",
        "print('a'); g()",
        "None",
        "'é'",
        "open('f', 'w').write('z')",
        "open('f').read()",
    ]
    assert [o.stdout for o in box.session(*pieces)] == ["4\n", "", "a\n6\n", "", "'é'\n", "1\n", "'z'\n"]


def test_errors_show_their_line(box: Any) -> None:
    outcome, after = box.session("x = 1\nx / 0", "x")
    assert (outcome.status, outcome.exit_code) == ("error", 1)
    assert 'File "<1>", line 2' in outcome.stderr
    assert "x / 0" in outcome.stderr
    assert "ZeroDivisionError" in outcome.stderr
    assert after.stdout == "1\n"
    assert "SyntaxError" in box.session("def")[0].stderr


def test_a_piece_that_takes_too_long_is_interrupted_and_names_stay(box: Any) -> None:
    first, slow, last = box.session("x = 5", "while True: x += 1", "x > 5", wall_seconds=0.4)
    assert (first.status, slow.status, last.stdout) == ("ok", "timeout", "True\n")


STUBBORN = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
ENDING = {
    "does not stop": (STUBBORN, "timeout"),
    "leaves": ("import os; os._exit(0)", "killed"),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", "killed"),
    "eats": ("held = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))", "memory"),
    "closes the way out": ("import os, time\nos.close(4); os.close(5); time.sleep(0.1); os._exit(1)", "killed"),
}


@pytest.mark.parametrize("name", ENDING)
def test_what_ends_a_session_is_told_and_the_next_piece_finds_a_new_one(name: str) -> None:
    code, status = ENDING[name]
    with Session(Limits(memory_bytes=512 << 20 if name == "eats" else 1 << 30)) as session:
        session.run("x = 1")
        outcome = session.run(code, wall_seconds=3 if name == "eats" else 0.4)
        if name == "eats":  # the piece may be told by Python first, and live
            assert outcome.status == "memory" or "MemoryError" in outcome.stderr
            return
        assert outcome.status == status
        after = session.run("'x' in globals()")
        assert (after.status, after.stdout, after.stderr) == ("ok", "False\n", ANEW)
        assert session.run("1").stderr == ""


def test_output_is_cut_and_a_flood_is_stopped(box: Any) -> None:
    long, flood, after = box.session("print('y' * 5000)", "while True: print('x' * 100)", "1 + 1")
    assert (long.status, long.stdout) == ("ok", "y" * 2000)
    assert flood.status == "output"
    assert len(flood.stdout) == 2000
    assert after.stdout == "2\n"


def test_what_is_printed_late_is_not_the_next_pieces(box: Any) -> None:
    late = "import threading, time\ndef w():\n    time.sleep(0.1)\n    print('late')\nt = threading.Thread(target=w); t.start()"
    outcomes = box.session(late, "t.join()", "print('mine')")
    assert outcomes[-1].stdout == "mine\n"


@pytest.mark.parametrize(
    "code",
    ["import os; os.write(5, b'\\xff' * 50)", "import os; m = b'u2:hi'; os.write(5, len(m).to_bytes(8, 'big') + m)",
     "import os; os.write(5, b'\\0' * 7 + b'\\x04junk')"],
)  # fmt: skip
def test_forged_answers_only_hurt_the_forger(code: str) -> None:
    with Session() as session:
        assert session.run(code, wall_seconds=0.4).status in ("error", "timeout")
    assert run_program("print(1)").stdout == "1\n"


def test_the_walls_are_the_same(box: Any) -> None:
    shadow, network, parent, fork = box.session(
        "open('/etc/shadow')", "import socket; socket.socket()", f"import os; os.kill({os.getpid()}, 9)",
        "import os, time\nif os.fork() == 0: time.sleep(100)\nlen([n for n in os.listdir('/proc') if n.isdigit()])",
    )  # fmt: skip
    assert "FileNotFoundError" in shadow.stderr
    assert "PermissionError" in network.stderr
    assert "ProcessLookupError" in parent.stderr
    assert fork.stdout == "3\n"


def test_a_long_piece_does_not_wait_for_who_reads_nothing() -> None:
    with Session() as session:
        session.run(
            "import os\nif os.fork() == 0:\n    import time; time.sleep(0.05); os.kill(os.getppid(), 19); os._exit(0)"
        )
        session.run("import time; time.sleep(0.3)", wall_seconds=0.1)
        outcome = session.run("#" * 300_000, wall_seconds=0.3)
        assert outcome.status in ("timeout", "ok", "killed")  # what counts is that it comes back
        assert outcome.seconds < 5


def test_describe_says_what_isolates_here() -> None:
    text = describe()
    assert "namespaces" in text
    assert os.uname().release in text
    assert "2 processes in sight" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may forbid namespaces")
def test_without_a_sandbox_nothing_runs() -> None:
    """A machine that forbids namespaces, as hardened ones and containers do: refused with the reason, and unsafe runs."""
    code = (
        "from blockexpand.sandbox import run_program, describe\nfrom blockexpand.errors import SandboxError\n"
        "try: run_program('print(1)')\nexcept SandboxError as error: print(error)\n"
        "print(describe().splitlines()[0], run_program('print(7)', unsafe=True).stdout)"
    )
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-c", code],
        capture_output=True, text=True, env={"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "no sandbox can be made here: unshare(namespaces): No space left on device; expected linux 5.12" in done.stdout
    )
    assert "unsafe" in done.stdout
    assert done.stdout.endswith("sandbox: none 7\n\n")


def test_a_wall_that_fails_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockexpand.sandbox import launch

    found = {**launch._interpreter(False), "shown": [["/no/such/folder", "/no/such/folder"]]}
    monkeypatch.setattr(launch, "_interpreter", lambda *_: found)
    with pytest.raises(SandboxError, match="open_tree /no/such/folder: No such file or directory"):
        run_program("1")


def test_unknown_processors_have_no_filter() -> None:
    from blockexpand.sandbox.inside import syscalls

    assert len(syscalls.build("aarch64")) % 8 == 0
    with pytest.raises(KeyError, match="riscv64"):
        syscalls.build("riscv64")
    assert walls.counts_processes(5)
