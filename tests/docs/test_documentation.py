"""Every command that our texts tell people to type is typed here, on tiny models.

A new command in README, docs/ or a recipe's head is run by itself. Where it reads something new, say what
stands in for it in STAND_INS (standing_in.py); where it cannot run here, say why in NOT_RUN: its options
are then only looked up in the program. A command that is neither run nor listed fails.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import PAGES, RECIPES, ROOT, Block, Command, blocks_of, commands_of, inline_commands_of
from standing_in import Ground, Scratch

import blockexpand
from blockexpand.cli.main import VERBS, build_app, run

NOT_RUN = {
    r".*: (pip|npm) ": "needs a package index",
    r".*: make ": "sets up an environment; that the Makefile has the target is looked up",
    r".*: hf ": "downloads data sets from the hub",
    r".*: (pytest|python benchmarks/)": "the suite itself; figures",
    r".*: head=": "asks Slurm for a name",
    r".*: blockexpand demo\b": "three minutes; tests/learn runs the same on a smaller model",
    r".*: blockexpand serve ": "serves until it is stopped; tests/serving has it",
    r"docs/serving.md:": "asks a server; test_serving_page.py has one asked",
    r".*: blockexpand push (?!.*--dry-run)": "sends to the hub; tests/publishing has a stand-in of it",
    r"recipes/compare.yaml:": "README has the same chain",
    r"docs/consumers.md:": "other programs in environments of their own; what they run is in tests/world",
}
"""Commands that are not run here (a pattern from the beginning of `PAGE:LINE: COMMAND`), and why."""

CODES = {r"--budget": (0, 1)}
"""Commands that may end with other codes than 0: a verdict is what it is on a tiny model."""

RUN_BY_SHELL = ("cp", "mkdir", "ls", "cat", "python")


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("docs-ground"))


@pytest.fixture
def scratch(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # a thread for a run: models here are tiny
    return Scratch(tmp_path, ground)


def ours(words: list[str]) -> list[str] | None:
    """The words after `blockexpand`, of a command that starts it, in whatever way."""
    if words[0] == "blockexpand":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["blockexpand"]:
        return words[words.index("-m") + 2 :]
    return None


def why_not(command: Command) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command.place)), None)


WITH_COMMANDS = [page for page in [*PAGES, *RECIPES] if commands_of(page)]


@pytest.mark.slow  # each page's commands are whole jobs
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_runs(page: Path, scratch: Scratch) -> None:
    for block in blocks_of(page) if page.suffix == ".md" else []:
        if block.title:
            scratch.write(block.title, block.text)
    for command in commands_of(page):
        words = ours(command.words)
        if words is not None:
            look_up(words, command.place)
        if why_not(command) is not None:
            look_at(command)
        elif words is not None:
            type_it(words, command, scratch)
        else:
            do_another(command, scratch)


def look_at(command: Command) -> None:
    """What can be known of a command that is not run."""
    if command.words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(command.words[1:]) <= set(targets), f"{command.place}\nthe Makefile has no such target"


def type_it(words: list[str], command: Command, scratch: Scratch) -> None:
    """Run a command of ours."""
    words = scratch.ready(words)
    if command.elsewhere:
        scratch.clear(words)
    if words[0] == "train" and "--resume" not in words:
        scratch.begin_again(words[1])
    if words[0] == "expand" and scratch.grown_before(words):
        return
    allowed = next((codes for pattern, codes in CODES.items() if re.search(pattern, command.text)), (0,))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), typed_by_a_person():
        code = run(words)
    assert code in allowed, (
        f"{command.place}\nended with {code}:\n{err.getvalue()[-2000:]}\n"
        "mend the command; or, if it reads something that is not there, name what stands in for it in "
        "tests/docs/standing_in.py (STAND_INS)"
    )


@contextlib.contextmanager
def typed_by_a_person() -> Iterator[None]:
    """What is typed into programs that ask for something: chats."""
    before, sys.stdin = sys.stdin, io.StringIO("the cat sees\n")
    try:
        yield
    finally:
        sys.stdin = before


def do_another(command: Command, scratch: Scratch) -> None:
    """A command of another program: run it inside the page's folder."""
    leaves = any(word.startswith(("/", "~", "..")) for word in command.words)
    assert command.words[0] in RUN_BY_SHELL and not leaves, (  # noqa: PT018 - one sentence tells of both
        f"{command.place}\nis not run: say why in NOT_RUN, or have it run (RUN_BY_SHELL; it must stay in its folder)"
    )
    scratch.ready(command.words)
    line = f"PATH={Path(sys.executable).parent}:$PATH; {command.text}"
    done = subprocess.run(["bash", "-c", line], cwd=scratch.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command.place}\n{done.stderr}"


def look_up(words: list[str], place: str) -> None:
    """Fail where the program has no such verb or option."""
    known = [len(verb.split()) for verb in VERBS if verb.split() == words[: len(verb.split())]]
    if not known:
        assert words[0].startswith("--"), f"{place}\nthere is no such verb; there are {', '.join(VERBS)}"
        return
    app = build_app()
    for word in words[: max(known)]:
        app = app[word]
    names = {name for argument in app.assemble_argument_collection(parse_docstring=True) for name in argument.names}
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= names | {"--help"}, f"{place}\nthere is no option {', '.join(given - names)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_exist(page: Path) -> None:
    for command in inline_commands_of(page):
        look_up(command.words[1:], command.place)


def messages() -> list[str]:
    """The text of every error that is raised, with … for what is filled in."""
    raised = [
        node
        for path in (ROOT / "src").rglob("*.py")
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(found, ast.Raise | ast.Return | ast.Assign)
        for node in ast.walk(found)
        if isinstance(node, ast.JoinedStr)
    ]
    return ["".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values) for node in raised]


def test_messages_in_troubleshooting_are_real() -> None:
    headings = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(headings) > 5
    known = messages()
    for heading in headings:
        pattern = ".*".join(re.escape(part).replace("'", "'?") for part in heading.split("…"))
        assert any(re.search(pattern, message) for message in known), f"no error says {heading!r} any more"


PYTHON = [(page, block) for page in PAGES for block in blocks_of(page) if block.label == "python"]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page.name}:{block.line}" for page, block in PYTHON])
def test_python_in_the_docs_names_what_there_is(page: Path, block: Block) -> None:
    """It is compiled, and every name of ours in it is looked up; it is not run."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blockexpand"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], page
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "blockexpand":
            assert hasattr(blockexpand, node.attr), f"{page.name}: blockexpand has no {node.attr}"
