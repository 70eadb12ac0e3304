"""One study: its base and texts made ready, its comparisons or its row of tasks run, its tables told.

In: a recipe and the folder of all studies, in which texts, bases, expanded models and runs are shared. Out: a folder
of the study with comparison.json or sequence.json, a page, and the tables as text. What is finished is not run again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blockexpand
from blockexpand.checkpoint import open_checkpoint
from blockexpand.corpus import PrepareRecipe, tokenizer_digest
from blockexpand.data import TINY_BASE
from blockexpand.expansion import survey
from blockexpand.records import from_plain, read_yaml
from blockexpand.records.comparison import CompareRecipe, Comparison
from blockexpand.staging import RECORD_NAME
from studies.arms import ARMS
from studies.bases import make_base
from studies.recipe import DEMO, TINY, BaseRecipe, StudyRecipe, Texts, load_study
from studies.sequence import run_sequence, sequence_tables
from studies.tables import comparison_tables, scale_tables, shift_table
from studies.tiny_base.general_text import with_prose
from studies.token_shift import token_shifts

TEXTS = Path(__file__).parent / "texts.yaml"


def study(name: str | Path, root: str | Path = "runs/studies", settings: Sequence[str] = (), workers: int = 1) -> str:
    """Run a study, and tell what it found as Markdown tables; a comparison's page is in `NAME-report`.

    Raises:
        UsageError: there is no such study.
        BlockexpandError: a part of it cannot be run.
    """
    short, recipe = load_study(name, settings)
    root = Path(root)
    folder = root / short
    if recipe.sequence is not None:
        base = _base_folder(recipe.base)
        general = prepared("general", recipe.texts, base, root)
        text = sequence_tables(run_sequence(recipe.sequence, base, general, folder))
    elif recipe.bases:
        text = scale_tables({one.name: _on_base(recipe, one, root, folder, workers) for one in recipe.bases})
    else:
        comparison = _compared(recipe, _base_folder(recipe.base), root, folder, recipe.compare, workers)
        text = comparison_tables(comparison)
        if recipe.shift is not None:
            text += "\n" + shift_table(token_shifts(comparison, folder, recipe.shift, ARMS))
    told = f"{recipe.question}\n({recipe.paper})\n\n{text}"
    (folder / "tables.md").write_text(told, encoding="utf-8")
    return told


def _base_folder(base: str) -> Path:
    return TINY_BASE if base == TINY else Path(base)


def prepared(which: str, texts: Texts, base: Path, root: Path) -> str:
    """The prepared folder of a study's `domain` or `general` text; the tiny base's are made once a tokenizer."""
    wish = texts.domain if which == "domain" else texts.general
    if wish != DEMO:
        return wish
    recipe = from_plain(PrepareRecipe, read_yaml(TEXTS)[which], str(TEXTS))
    test = dataclasses.replace(recipe.splits["test"], max_tokens=texts.test_tokens)
    recipe = dataclasses.replace(recipe, splits={**recipe.splits, "test": test})
    tokenizer = tokenizer_digest(base).removeprefix("sha256:")[:8]
    folder = root / "texts" / f"{which}-{texts.test_tokens}-{tokenizer}"
    if not (folder / RECORD_NAME).is_file():
        if which == "general":
            recipe = with_prose(recipe, folder.parent, ("replay", "validation", "test"))
        blockexpand.prepare(recipe, base, folder)
    return str(folder)


def _compared(
    recipe: StudyRecipe, base: Path, root: Path, out: Path, settings: dict[str, Any], workers: int
) -> Comparison:
    """Run the study's comparison on a base, and put it on a page."""
    plain = {
        **settings,
        "base": str(base),
        "out": str(out),
        "data": {
            "domain": prepared("domain", recipe.texts, base, root),
            "general": prepared("general", recipe.texts, base, root),
            "validation_rows": recipe.texts.validation_rows,
        },
        "runs": str(root / "shared"),
    }
    found = blockexpand.compare(from_plain(CompareRecipe, plain, f"the study {out.name}: compare"), workers, ARMS)
    blockexpand.report([out], out.with_name(f"{out.name}-report"), overwrite=True)
    return found


def _on_base(recipe: StudyRecipe, one: BaseRecipe, root: Path, folder: Path, workers: int) -> Comparison:
    """The study's comparison on one of its bases, with as many new blocks as that one is to have."""
    base = _base_folder(one.folder) if one.folder is not None else make_base(one, root)
    arms = []
    for arm in recipe.compare["arms"]:
        changed = dict(arm)
        if "plan" in arm:
            changed["plan"] = {**arm["plan"], "blocks": one.new_blocks}
        if "trainable_parameters" in arm["arm"]:
            changed["arm"] = {**arm["arm"], "trainable_parameters": one.new_blocks * _block_size(base)}
        arms.append(changed)
    return _compared(recipe, base, root, folder / one.name, {**recipe.compare, "arms": arms}, workers)


def _block_size(base: Path) -> int:
    """The parameters of one block."""
    facts = survey(open_checkpoint(base))
    return sum(math.prod(tensor.shape) for tensor in facts.tensors_of(0) if tensor.parameter)
