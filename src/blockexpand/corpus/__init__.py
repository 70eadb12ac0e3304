"""From text and chats to rows of tokens: sources -> documents -> splits -> packed rows on disk."""

from blockexpand.corpus.inspection import SourceSummary, inspect_sources
from blockexpand.corpus.preparation import prepare
from blockexpand.corpus.recipe import PrepareRecipe, Source, SplitRecipe, load_recipe, make_recipe
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus

__all__ = [
    "Corpus",
    "PrepareRecipe",
    "Source",
    "SourceSummary",
    "SplitRecipe",
    "TokenRows",
    "inspect_sources",
    "load_recipe",
    "make_recipe",
    "open_corpus",
    "prepare",
]
