# ruff: noqa: E501 (programs as data)
"""Every limit, alone and split over processes; what passes it is ended whole, and the next sample runs as if nothing was."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from blockexpand.errors import SandboxError
from blockexpand.sandbox import Limits

FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
HUNGRY_FAMILY = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 16)) * 480
        time.sleep(20)
time.sleep(20)
"""
BUSY_FAMILY = "import os\nfor _ in range(2): os.fork()\nwhile True: pass"
BUSY_LINE = """
import os, time
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
"""

ENDED = {
    "sleeps for ever": ("import time\ntime.sleep(1000)", {"wall_seconds": 0.5}, "timeout"),
    "ignores every signal": (
        "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "time.sleep(1000)",
        {"wall_seconds": 0.5},
        "timeout",
    ),
    "computes for ever": ("while True: pass", {"cpu_seconds": 1}, "timeout"),
    "computes in a family": (BUSY_FAMILY, {"cpu_seconds": 1}, "timeout"),
    "computes in children that end": (BUSY_LINE, {"cpu_seconds": 1}, "timeout"),
    "forks for ever": (FORK_BOMB, {"wall_seconds": 1}, "timeout"),
    "4 GB at once": ("held = bytearray(4 << 30)", {}, "memory"),
    "4 GB in steps": ("held = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))", {}, "memory"),
    "memory split over processes": (HUNGRY_FAMILY, {}, "memory"),
    "prints for ever": ("while True: print('x' * 1000)", {}, "output"),
    "complains for ever": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {}, "output"),
    "prints for ever from a daemon": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: os.write(1, b'x' * 1000)\nimport time\ntime.sleep(9)",
        {},
        "output",
    ),
}


@pytest.mark.parametrize("name", ENDED)
def test_what_passes_a_limit_is_ended(box: Any, small: Limits, name: str) -> None:
    code, changed, status = ENDED[name]
    outcome = box.run_program(code, limits=dataclasses.replace(small, **changed))
    assert outcome.status == status, outcome
    assert len(outcome.stdout) <= small.output_chars
    assert len(outcome.stderr) <= small.output_chars
    assert outcome.seconds < small.wall_seconds + 2.5
    after = box.run_program("print('still here')")
    assert (after.status, after.stdout) == ("ok", "still here\n")


def test_the_disk_cannot_be_filled(box: Any, small: Limits) -> None:
    code = """
import os
written, names = 0, ['/tmp/a', '/dev/shm/b', '/tmp/c']
for name in names:
    with open(name, 'wb', 0) as file:
        try:
            while True: written += file.write(b'x' * 65536)
        except OSError as error: print(error.strerror)
print(written <= 4 << 20)
"""
    outcome = box.run_program(code, limits=small)
    lines = outcome.stdout.splitlines()
    assert lines[-1] == "True", outcome
    assert set(lines[:-1]) <= {"No space left on device", "File too large"}


def test_the_inodes_cannot_be_used_up(box: Any, small: Limits) -> None:
    code = """
made = 0
try:
    while True:
        open(f'/tmp/{made}', 'w').close()
        made += 1
except OSError as error: print(error.strerror, made < 20000)
"""
    assert box.run_program(code, limits=small).stdout == "No space left on device True\n"


def test_threads_count_as_processes(box: Any, small: Limits) -> None:
    code = """
import threading, time
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        count += 1
except RuntimeError: print(count < 12)
import os
os.write(1, b'')
"""
    assert box.run_program(code + "import sys; sys.stdout.flush(); os._exit(0)", limits=small).stdout == "True\n"


def test_forks_that_share_memory_are_not_counted_twice(box: Any, small: Limits) -> None:
    code = """
import os, time
held = bytearray(b'x' * (40 << 20))
for _ in range(5):
    if os.fork() == 0:
        time.sleep(0.2)
        os._exit(0)
for _ in range(5): os.wait()
print('fine')
"""
    assert box.run_program(code, limits=small).stdout == "fine\n"


def test_output_is_kept_up_to_the_limit(box: Any, small: Limits) -> None:
    outcome = box.run_program("print('é' * 20_000)", limits=small)
    assert (outcome.status, outcome.stdout) == ("output", "é" * 10_000)
    outcome = box.run_program("print('é' * 9_999)", limits=small)
    assert (outcome.status, outcome.stdout) == ("ok", "é" * 9_999 + "\n")
    outcome = box.run_program("import os\nos.write(1, b'\\xff\\xfe')", limits=small)
    assert outcome.stdout == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wall_seconds", 0), ("cpu_seconds", 0), ("memory_bytes", 1000), ("processes", 0), ("file_bytes", 1),
        ("output_chars", 0), ("wall_seconds", float("nan")),
    ],
)  # fmt: skip
def test_limits_that_are_none_are_refused(field: str, value: float) -> None:
    with pytest.raises(SandboxError, match=f"limit {field} is {value}, expected at least"):
        Limits(**{field: value})


def test_unsafe_keeps_the_limits(small: Limits) -> None:
    from blockexpand.sandbox import run_program

    assert run_program("print(1)", unsafe=True).stdout == "1\n"
    limits = dataclasses.replace(small, wall_seconds=0.5)
    assert run_program("import time\ntime.sleep(9)", limits, unsafe=True).status == "timeout"
    assert run_program("held = bytearray(4 << 30)", small, unsafe=True).status == "memory"
    assert run_program("while True: print('x' * 99)", small, unsafe=True).status == "output"
    here = run_program("import os\nprint(os.getcwd(), os.listdir('.'))", unsafe=True).stdout.split(" ", 1)
    assert here[1] == "[]\n"
    assert not os.path.exists(here[0])
