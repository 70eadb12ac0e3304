"""Where the rows of a task come from: a local file of the same name, or the hub.

In: a task's name and the splits that it needs. Out: rows, each a dictionary, and where they came from. A local file is
`<data>/<task>/<split>`, `<data>/<task>_<split>` or `<data>/<task>` with one of the endings .jsonl, .jsonl.gz, .json (a
list), .csv, .tsv, .parquet or .txt, with the columns that the data set has on the hub; of MMLU also its own archive of
csv files, `<task>.zip`. Refused: an empty split, rows without the columns that the task reads.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blockexpand.corpus.files import Bad, file_rows
from blockexpand.errors import CorpusError, EvaluationError

Row = dict[str, Any]

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet", ".txt")
ARCHIVE = ".zip"
_PIECE_CHARACTERS = 8_000
"""A plain text is cut at line ends into documents of at least this many characters, so that there is something to
compare in pairs; chosen here: some 2,000 tokens."""


def local_file(folder: Path, task: str, split: str) -> Path | None:
    """The file with a task's split, if there is one."""
    for stem in (f"{task}/{split}", f"{task}_{split}", task):
        for ending in _ENDINGS:
            path = folder / f"{stem}{ending}"
            if path.is_file():
                return path
    archives = [folder / f"{task}{ARCHIVE}", folder / task / f"{task}{ARCHIVE}"]
    return next((path for path in archives if path.is_file()), None)


def read_rows(path: Path, split: str = "") -> list[Row]:
    """The rows of a local file.

    Raises:
        EvaluationError: it cannot be read as what its ending says, or holds no row.
    """
    rows: list[Any] = []
    try:
        if path.suffix == ARCHIVE:
            rows = _archived(path, split)
        elif path.suffix == ".txt":
            rows = _pieces(path)
        else:
            for place, row in file_rows(path):
                if isinstance(row, Bad) or not isinstance(row, dict):
                    said = row.why if isinstance(row, Bad) else f"{place} is {str(row)[:60]!r}"
                    raise CorpusError(f"{said}; expected a mapping of columns")
                rows.append(row)
    except (ValueError, OSError, CorpusError, csv.Error, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())[:300]
        raise EvaluationError(f"{path} cannot be read: {why}; expected rows of data as its ending says") from None
    if not rows:
        raise EvaluationError(f"{path} is empty: a split needs at least one row; bring the whole file")
    return rows


def check_columns(rows: Sequence[Row], columns: Iterable[str], where: str) -> None:
    """Every row has the columns.

    Raises:
        EvaluationError: one has not; the message names the row, what is missing and what is there.
    """
    wanted = sorted(set(columns))
    for number, row in enumerate(rows):
        missing = [name for name in wanted if name not in row]
        if missing:
            raise EvaluationError(
                f"{where}, row {number + 1} has no column {', '.join(map(repr, missing))}; expected "
                f"{', '.join(wanted)}, got {', '.join(sorted(row))}; bring the data in the hub's columns"
            )


def hub_rows(path: str, name: str | None, split: str, bring: str) -> list[Row]:
    """The rows of a split of a data set on the hub, or of what of it is in the cache.

    Raises:
        EvaluationError: it cannot be had; `bring` names the local file that would do instead.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from httpx2 import HTTPError

    datasets.disable_progress_bars()
    try:
        rows = list(datasets.load_dataset(path, name, split=split))
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        why = " ".join(str(error).split())[:160]
        raise EvaluationError(
            f"the data of {path}{f' ({name})' if name else ''}, split {split}, cannot be had from the hub ({why}); "
            f"bring {bring} (also .json, .csv, .tsv or .parquet, with the hub's columns), or leave the task out"
        ) from None
    if not rows:
        raise EvaluationError(f"the split {split} of {path} is empty: a split needs at least one row; name another")
    return rows


_SHORT_SPLITS = {"validation": "val"}


def _archived(path: Path, split: str) -> list[Row]:
    """MMLU as its authors ship it: `<split>/<subject>_<split>.csv`, without a header, the answer a letter."""
    part = _SHORT_SPLITS.get(split, split)
    rows = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if Path(name).parent.name == part and name.endswith(f"_{part}.csv"):
                subject = Path(name).name.removesuffix(f"_{part}.csv")
                lines = csv.reader(io.TextIOWrapper(archive.open(name), "utf-8", newline=""))
                for question, *choices, letter in lines:
                    known = {"question": question, "choices": choices, "subject": subject}
                    rows.append(known | {"answer": "ABCD".index(letter)})
    return rows


def _pieces(path: Path) -> list[Row]:
    pieces, part, length = [], [], 0
    for line in path.read_text("utf-8").splitlines(keepends=True):
        part.append(line)
        length += len(line)
        if length >= _PIECE_CHARACTERS:
            pieces.append({"text": "".join(part)})
            part, length = [], 0
    if "".join(part).strip():
        pieces.append({"text": "".join(part)})
    return pieces
