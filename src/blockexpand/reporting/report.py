"""`report`: folders of records into one folder with a page, its figures and its tables.

In: folders that earlier steps wrote. Out: `index.html` (one file, opens from disk), `transcripts-N.html` (one a run
of an agent), `judged-N.html` (one a judged pair), `figures/*.svg`, `tables/*.csv`, and `blockexpand.json`, which names
every file that it rests on. The same records give the same bytes. Refused: what `sources` refuses, and an output that
is taken or is one of the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from blockexpand import __version__
from blockexpand.digests import digest_file
from blockexpand.errors import ReportError
from blockexpand.records import write_record
from blockexpand.records.learn import LearnRecord
from blockexpand.reporting.page import make_page
from blockexpand.reporting.sources import Source, gather
from blockexpand.staging import RECORD_NAME, check_output, staged_folder

PAGE_NAME = "index.html"


@dataclass(frozen=True, kw_only=True)
class ReportRecord:
    """What a report says and rests on; saved as its `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.report"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    title: str
    verdict: str
    """The sentence at the top."""
    sources: tuple[Source, ...]
    """Every file that was read."""
    files: dict[str, str]
    """The digest of every file of the report but this one."""


def report(
    folders: Sequence[str | Path], out: str | Path, overwrite: bool = False, learnt: LearnRecord | None = None
) -> Path:
    """Write the page about the records in some folders, and return its path.

    Args:
        folders: What to report on, each recognised by the format of its record: comparisons, expansions,
            evaluations (of several on the same documents the first counts as "before"), runs of training and of
            agents, judged pairs, prepared texts.
        out: The folder to write; it appears whole or not at all.
        overwrite: Replace an earlier report.
        learnt: What `learn` came to; then the page begins with it.

    Raises:
        ReportError: a folder holds no record that a report reads, or `out` is one of them.
        StagingError: `out` is taken or cannot be written.
    """
    target = Path(out)
    _check_apart(folders, target)
    check_output(target, overwrite)
    material = gather(folders)
    page = make_page(material, learnt)
    with staged_folder(target, overwrite) as staged:
        (staged / PAGE_NAME).write_text(page.html, encoding="utf-8")
        for name, html in page.transcripts.items():
            (staged / name).write_text(html, encoding="utf-8")
        (staged / "figures").mkdir()
        for drawing in page.drawings:
            (staged / "figures" / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
        (staged / "tables").mkdir()
        for table in page.tables:
            (staged / "tables" / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
        record = ReportRecord(
            blockexpand_version=__version__,
            title=page.title,
            verdict=page.verdict,
            sources=material.sources,
            files={p.relative_to(staged).as_posix(): digest_file(p) for p in sorted(staged.rglob("*")) if p.is_file()},
        )
        write_record(staged / RECORD_NAME, record)
    return target / PAGE_NAME


def _check_apart(folders: Sequence[str | Path], out: Path) -> None:
    """Refuse to write over what the report is about."""
    place = out.resolve()
    for folder in folders:
        source = Path(folder).resolve()
        if source == place or place in source.parents:
            raise ReportError(
                f"the output {out} is, or contains, the folder {folder} that the report is about; expected another "
                "place; choose another name"
            )
