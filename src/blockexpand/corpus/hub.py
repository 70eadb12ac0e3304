"""Rows of a Hugging Face data set, through the `datasets` library where it is installed.

In: a hub id, or a folder that `datasets` saved or can read. Out: (place, row) pairs, streamed unless the recipe
says otherwise; on a machine without network, with HF_HUB_OFFLINE=1, what is in the cache or the folder. Refused:
a data set, configuration, split or column that is not there; no code of a data set is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockexpand.corpus.documents import Bad
from blockexpand.corpus.files import Row
from blockexpand.corpus.sources import HuggingFaceSource
from blockexpand.errors import CorpusError

_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder (datasets 5.2)."""


def hub_rows(source: HuggingFaceSource, start: int) -> Iterator[tuple[Row | Bad, float]]:
    """The rows from number `start` on, each with the share read by then (0 where nobody knows how many there are).

    Raises:
        CorpusError: `datasets` is not installed, or what is asked for is not there.
    """
    table = _opened(source)
    total = 0 if _streams(table) else len(table)
    rows = table.skip(start) if start else table
    number = start
    iterator = iter(rows)
    while True:
        place = f"{source.path} ({source.split}), row {number + 1}"
        try:
            row = next(iterator, None)
        except (OSError, ValueError, UnicodeError) as error:
            why = " ".join(str(error).split())[:200]
            yield Bad(why=f"{place} cannot be read: {why}; the rest of the split is lost"), 1.0
            return
        if row is None:
            return
        number += 1
        yield (place, row), number / total if total else 0.0


def _streams(table: Any) -> bool:
    import datasets

    return isinstance(table, datasets.IterableDataset)


def _opened(source: HuggingFaceSource) -> Any:
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            f"the source {source.path!r} is of kind huggingface, which needs the `datasets` library, and it is not "
            "installed; pip install 'blockexpand[datasets]'"
        ) from None
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        if any((Path(source.path) / name).is_file() for name in _SAVED):
            return _saved(datasets.load_from_disk(source.path), source)
        return datasets.load_dataset(
            source.path,
            source.name,
            data_dir=source.folder,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CorpusError(
            f"the data set {source.path!r} (configuration {source.name}, split {source.split!r}) cannot be opened: "
            f"{why}"
        ) from None


def _saved(found: Any, source: HuggingFaceSource) -> Any:
    if not isinstance(found, dict):  # one split alone
        return found
    if source.split not in found:
        raise ValueError(f"it has the splits {', '.join(found)}; set 'split' to one of these")
    return found[source.split]
