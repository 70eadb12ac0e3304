"""From text and chats to rows of tokens: sources -> splits -> tokens -> packed rows on disk."""

from blockexpand.corpus.preparing import load_recipe, prepare
from blockexpand.corpus.recipe import PrepareRecipe, SplitRecipe
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus

__all__ = [
    "Corpus",
    "PrepareRecipe",
    "SplitRecipe",
    "TokenRows",
    "load_recipe",
    "open_corpus",
    "prepare",
]
