"""`study`: one of the paper's studies, run on a base, told as a table, shown on a page.

In: a recipe and the folder of all studies, in which texts, expanded models and runs are shared. Out: a folder of the
study with its comparison or its matrix, `finding.json`, and `report/`. What is finished is not run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from blockexpand.comparison import CompareRecipe, Comparison, compare, read_examination
from blockexpand.records import from_plain, to_plain, write_record
from blockexpand.reporting import report
from blockexpand.reporting.sequences import SEQUENCE_NAME
from blockexpand.studies.bases import make_base
from blockexpand.studies.material import base_folder, data_of
from blockexpand.studies.outcomes import record_of
from blockexpand.studies.recipe import BaseRecipe, StudyRecipe, load_study
from blockexpand.studies.sequence import run_sequence
from blockexpand.studies.tables import comparison_tables, scale_tables, sequence_tables

FINDING_NAME = "finding.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a study found; saved as `finding.json`."""

    FORMAT: ClassVar[str] = "blockexpand.finding"
    FORMAT_VERSION: ClassVar[int] = 1

    name: str
    recipe: StudyRecipe
    text: str
    """The tables, as Markdown."""
    pages: tuple[str, ...]
    """The reports, by their files."""


def study(
    name: str | Path, root: str | Path = "runs/studies", settings: Sequence[str] = (), workers: int = 1
) -> Finding:
    """Run a study, and tell what it found.

    Args:
        name: One that ships with us (`known_studies`), or a YAML file.
        root: The folder of all studies.
        settings: `key=value` in the place of the recipe's.
        workers: Runs at a time, in its comparisons.

    Raises:
        StudyError: there is no such study.
        ComparisonError, TrainingError, CorpusError: a part of it cannot be run.
    """
    short, recipe = load_study(name, settings)
    folder = Path(root) / short
    if recipe.sequence is not None:
        base = base_folder(recipe)
        found = run_sequence(recipe.sequence, base, data_of(recipe.texts, base, Path(root)), folder)
        record = record_of(found, recipe, base)
        write_record(folder / SEQUENCE_NAME, record)
        text, pages = sequence_tables(record), (_page(folder),)
    elif recipe.bases:
        comparisons = {one.name: _on_base(recipe, one, Path(root), folder, workers) for one in recipe.bases}
        text, pages = scale_tables(comparisons), tuple(_page(folder / name) for name in comparisons)
    else:
        comparison = _compared(recipe, base_folder(recipe), (Path(root), folder), recipe.compare, workers)
        text, pages = comparison_tables(comparison, read_examination(folder)), (_page(folder),)
    finding = Finding(name=short, recipe=recipe, text=f"{recipe.question}\n({recipe.paper})\n\n{text}", pages=pages)
    write_record(folder / FINDING_NAME, finding)
    return finding


def _compared(
    recipe: StudyRecipe, base: Path, folders: tuple[Path, Path], settings: dict[str, Any], workers: int
) -> Comparison:
    """Run the study's comparison on a base; `folders` are all studies' and this one's."""
    root, out = folders
    plain = {
        **settings,
        "base": str(base),
        "out": str(out),
        "data": to_plain(data_of(recipe.texts, base, root)),
        "runs": str(root / "shared" / base.name),
    }
    return compare(from_plain(CompareRecipe, plain, f"the study {out.name}: compare"), workers)


def _on_base(recipe: StudyRecipe, one: BaseRecipe, root: Path, folder: Path, workers: int) -> Comparison:
    """The study's comparison on one of its bases, with as many new blocks as that one is to have."""
    if one.folder is not None:
        base = base_folder(dataclasses.replace(recipe, base=one.folder))
    else:
        base = make_base(one, root / "bases" / one.name, root)
    arms = []
    for arm in recipe.compare["arms"]:
        changed = dict(arm)
        if "plan" in arm:
            changed["plan"] = {**arm["plan"], "blocks": one.new_blocks}
        if "trainable_parameters" in arm["arm"]:
            changed["arm"] = {**arm["arm"], "trainable_parameters": one.new_blocks * _block_size(base)}
        arms.append(changed)
    settings = {**recipe.compare, "arms": arms}
    return _compared(recipe, base, (root, folder / one.name), settings, workers)


def _block_size(base: Path) -> int:
    """The parameters of one block."""
    from blockexpand.checkpoint import open_checkpoint
    from blockexpand.expansion import survey

    facts = survey(open_checkpoint(base))
    sizes = [t.shape for t in facts.tensors_of(0) if t.parameter]
    total = 0
    for shape in sizes:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _page(folder: Path) -> str:
    return str(report([folder], folder.with_name(f"{folder.name}-report"), overwrite=True))
