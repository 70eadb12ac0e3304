"""The texts that benchmarks on the tiny base learn and keep: Python, and the prose of the installed packages."""

from __future__ import annotations

import sysconfig

from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe

_ROW_TOKENS = 256


def python_text() -> PrepareRecipe:
    """Real code, on every machine."""
    return PrepareRecipe(
        sources=(Source(path="stdlib"),),
        row_tokens=_ROW_TOKENS,
        splits={
            "train": SplitRecipe(share=0.8, max_tokens=200_000),
            "validation": SplitRecipe(share=0.1, max_tokens=20_000, max_document_tokens=600),
            "test": SplitRecipe(share=0.1, max_tokens=24_000, max_document_tokens=600),
        },
    )


def english_text() -> PrepareRecipe:
    """Pages of documentation."""
    return PrepareRecipe(
        sources=(Source(path=sysconfig.get_path("purelib"), kind="text", endings=(".md", ".rst")),),
        row_tokens=_ROW_TOKENS,
        splits={
            "replay": SplitRecipe(share=0.70, max_tokens=60_000),
            "validation": SplitRecipe(share=0.15, max_tokens=20_000),
            "test": SplitRecipe(share=0.15, max_tokens=24_000),
        },
    )
