"""What a study stands on: a base, and texts prepared for it.

In: a recipe and the folder of all studies. Out: the base's folder, the settings of the data. The demo's texts are
prepared once for each tokenizer. Refused: the demo's texts for a base that cannot take their rows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from blockexpand.comparison.caching import alone
from blockexpand.corpus import PrepareRecipe, prepare
from blockexpand.corpus.tokenizer import tokenizer_digest
from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.recipe import load_demo
from blockexpand.records.run import DataSettings
from blockexpand.staging import RECORD_NAME
from blockexpand.studies.recipe import DEMO, TINY, StudyRecipe, Texts


def base_folder(recipe: StudyRecipe) -> Path:
    """The base's folder."""
    return BASE if recipe.base == TINY else Path(recipe.base)


def data_of(texts: Texts, base: Path, root: Path) -> DataSettings:
    """The prepared folders; the demo's are made in `root`/texts unless they are there."""
    return DataSettings(
        domain=_prepared("domain", texts.domain, texts, base, root),
        general=_prepared("general", texts.general, texts, base, root),
        validation_rows=texts.validation_rows,
    )


def _prepared(which: str, wish: str, texts: Texts, base: Path, root: Path) -> str:
    if wish != DEMO:
        return wish
    demo = load_demo(full=False)
    recipe = with_test_tokens(demo.domain if which == "domain" else demo.general, texts.test_tokens)
    tokenizer = tokenizer_digest(base).removeprefix("sha256:")[:8]
    folder = root / "texts" / f"{which}-{texts.test_tokens}-{tokenizer}"
    with alone(folder):
        if not (folder / RECORD_NAME).is_file():
            prepare(recipe, base, folder)
    return str(folder)


def with_test_tokens(recipe: PrepareRecipe, tokens: int) -> PrepareRecipe:
    """The recipe with as many tokens in its test split."""
    test = dataclasses.replace(recipe.splits["test"], max_tokens=tokens)
    return dataclasses.replace(recipe, splits={**recipe.splits, "test": test})
