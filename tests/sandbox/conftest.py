"""The sandbox as root and as a plain user, by one name each: `users("root").run_program(...)`."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blockexpand.sandbox
from blockexpand.sandbox import Limits, Outcome, Session, passes, run_program

NOBODY = 65534
PYTHON = Path("/usr/bin/python3")
"""Of the system: every user may run it."""

_DRIVER = """
import dataclasses, json, sys
from blockexpand.sandbox import Limits, Session, passes, run_program
sessions = {}
for line in sys.stdin:
    name, arguments = json.loads(line)
    if "limits" in arguments:
        arguments["limits"] = Limits(**arguments["limits"])
    if name == "session":
        with Session() as session:
            outcome = [dataclasses.asdict(session.run(code, **arguments["each"])) for code in arguments["pieces"]]
    else:
        outcome = dataclasses.asdict({"run_program": run_program, "passes": passes}[name](**arguments))
    print(json.dumps(outcome), flush=True)
"""


class Here:
    """The sandbox as whoever runs the tests."""

    def run_program(self, code: str, **arguments: Any) -> Outcome:
        return run_program(code, **arguments)

    def passes(self, program: str, tests: str, **arguments: Any) -> Outcome:
        return passes(program, tests, **arguments)

    def session(self, *pieces: str, **each: Any) -> list[Outcome]:
        with Session() as session:
            return [session.run(code, **each) for code in pieces]


class Elsewhere:
    """The sandbox as nobody, driven over a pipe."""

    def __init__(self, folder: Path) -> None:
        package = Path(blockexpand.__file__).parent
        shutil.copytree(
            package / "sandbox", folder / "blockexpand/sandbox", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(package / "errors.py", folder / "blockexpand/errors.py")
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        self.process = subprocess.Popen(
            [str(PYTHON), "-c", f"import sys\nsys.path.insert(0, {str(folder)!r})\n{_DRIVER}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
            user=NOBODY, group=NOBODY, extra_groups=[],
            env={"SECRET_OF_THE_PARENT": "do not tell"},
        )  # fmt: skip

    def _ask(self, name: str, arguments: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        if "limits" in arguments:
            arguments["limits"] = dataclasses.asdict(arguments["limits"])
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the driver has ended"
        return json.loads(line)

    def run_program(self, code: str, **arguments: Any) -> Outcome:
        return Outcome(**self._ask("run_program", {"code": code, **arguments}))

    def passes(self, program: str, tests: str, **arguments: Any) -> Outcome:
        return Outcome(**self._ask("passes", {"program": program, "tests": tests, **arguments}))

    def session(self, *pieces: str, **each: Any) -> list[Outcome]:
        return [Outcome(**outcome) for outcome in self._ask("session", {"pieces": pieces, "each": each})]

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def users() -> Iterator[Callable[[str], Here | Elsewhere]]:
    made: dict[str, Elsewhere] = {}
    folder = Path(tempfile.mkdtemp(prefix="blockexpand-nobody-"))

    def find(user: str) -> Here | Elsewhere:
        is_root = os.geteuid() == 0
        if (user == "root") == is_root:
            return Here()
        if not is_root:
            pytest.skip("only root can run the probes as root")
        if not PYTHON.exists():
            pytest.skip(f"{PYTHON} is not there, and nobody may run this Python")
        if user not in made:
            folder.chmod(0o755)
            made[user] = Elsewhere(folder)
        return made[user]

    yield find
    for other in made.values():
        other.close()
    shutil.rmtree(folder)


@pytest.fixture(params=["root", "plain"])
def box(request: pytest.FixtureRequest, users: Callable[[str], Here | Elsewhere]) -> Here | Elsewhere:
    return users(request.param)


@pytest.fixture
def small() -> Limits:
    return Limits(wall_seconds=3, memory_bytes=128 << 20, processes=12, file_bytes=4 << 20, output_chars=10_000)
