"""From text and chats to rows of tokens: sources -> splits -> tokens -> packed rows on disk."""

from blockexpand.corpus.dataset import Corpus, CorpusRecord, TokenRows, open_corpus
from blockexpand.corpus.preparing import load_recipe, prepare
from blockexpand.corpus.recipe import PrepareRecipe, SplitRecipe

__all__ = [
    "Corpus",
    "CorpusRecord",
    "PrepareRecipe",
    "SplitRecipe",
    "TokenRows",
    "load_recipe",
    "open_corpus",
    "prepare",
]
