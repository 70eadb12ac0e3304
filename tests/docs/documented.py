"""What our texts tell people to type: the commands of every shell block, of recipes' heads and of inline code.

In: README, CONTRIBUTING, docs/*.md, recipes/*.yaml. Out: commands and blocks, each with its place. A line
that continues (a backslash at its end) is one line; `a && b` is two commands.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SHELLS = ("sh", "bash", "console")

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<label>[\w.-]*)(?P<more>[^\n]*)\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)
_INLINE = re.compile(r"`(blockexpand [^`]+)`")
_STEP = re.compile(r"^\s*- run: (.*)$", re.M)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    label: str
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """One command as it stands in a text."""

    page: Path
    line: int
    text: str
    elsewhere: bool = False
    """A step of a workflow: it runs on a machine of its own, where nothing was written before."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]*)"', match["more"])
        inner = "\n".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines())
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page, line, match["label"], title[1] if title else "", inner))
    return found


def commands_of(page: Path) -> list[Command]:
    """What a page says to type, in order: its shell blocks and the steps of its workflows, or a recipe's head."""
    if page.suffix == ".yaml":
        head = page.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        lines = [line.removeprefix("#") if re.match(r"#   +\S", line) else "" for line in head]
        return _commands(page, 1, "\n".join(lines))
    found = []
    for block in blocks_of(page):
        if block.label in SHELLS:
            found += _commands(page, block.line, block.text)
        elif block.label in ("yaml", "yml"):
            found += [Command(page, block.line, step[1], elsewhere=True) for step in _STEP.finditer(block.text)]
    return found


def inline_commands_of(page: Path) -> list[Command]:
    """The commands named in running text and in drawings of text."""
    text = page.read_text(encoding="utf-8")
    return [
        Command(page, text.count("\n", 0, match.start()) + 1, " ".join(match[1].split()))
        for match in _INLINE.finditer(text)
    ]


def _commands(page: Path, first: int, text: str) -> list[Command]:
    found = []
    whole, begun = "", first
    for number, line in enumerate(text.splitlines(), first):
        begun = begun if whole else number
        whole += line.strip().removeprefix("$ ")
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        parts = [part for part in re.split(r"\s&&\s", whole) if shlex.split(part, comments=True)]
        found += [Command(page, begun, " ".join(part.split())) for part in parts]
        whole = ""
    return found
