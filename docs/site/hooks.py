"""What mkdocs does not do by itself: pages from outside docs/, and the page of commands.

In: the repository. Out: CHANGELOG.md, CONTRIBUTING.md and benchmarks/RESULTS.md as pages beside those of
docs/, all links between them working as they do in the repository; and in commands.md, for its mark, what
every verb's own --help says. Refused by `--strict`: links that lead nowhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")
INSTEAD = {"README.md": "index.md"}
"""What stands on the site in the place of a file of the repository."""

COMMANDS_MARK = "<!-- commands -->"
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead where they lead in the repository; write the commands where they are asked for."""
    source = page.file.src_uri
    here = Path(source) if source in OUTSIDE else Path("docs") / source
    if COMMANDS_MARK in markdown:
        markdown = markdown.replace(COMMANDS_MARK, commands())
    pieces, position = [], 0
    for fence in _FENCE.finditer(markdown):  # what stands in code is no link
        pieces += [_relinked(markdown[position : fence.start()], here, source), fence.group()]
        position = fence.end()
    return "".join([*pieces, _relinked(markdown[position:], here, source)])


def _relinked(text: str, here: Path, source: str) -> str:
    return _LINK.sub(lambda link: link[1] + _on_site(link[2], here, source), text)


def _on_site(target: str, here: Path, source: str) -> str:
    """A link of a file of the repository, as a link of its page."""
    meant = os.path.normpath(here.parent / target)
    meant = INSTEAD.get(meant, meant.removeprefix("docs/"))
    return os.path.relpath(meant, Path(source).parent)


def commands() -> str:
    """Every verb's help as Markdown, made from the program itself."""
    from blockexpand.cli.main import build_app

    text = build_app().generate_docs("markdown", heading_level=2, flatten_commands=True)
    first, *verbs = re.split(r"^(?=## blockexpand )", text, flags=re.MULTILINE)
    assert verbs, f"no verbs in what cyclopts wrote: {first[:200]}"
    mark = "**Common options**:\n"
    common = verbs[0].partition(mark)[2]
    return f"## Options of every verb\n{common}" + "".join(verb.partition(mark)[0] for verb in verbs)
