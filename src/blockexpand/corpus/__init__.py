"""From text and chats to rows of tokens: sources -> documents -> splits -> packed rows on disk."""

from blockexpand.corpus.copies import content_key
from blockexpand.corpus.files import Document, all_documents
from blockexpand.corpus.inspection import SourceSummary, inspect_sources
from blockexpand.corpus.preparation import prepare
from blockexpand.corpus.recipe import PrepareRecipe, Source, SplitRecipe, load_recipe, make_recipe, source_of
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest

__all__ = [
    "Corpus",
    "Document",
    "PrepareRecipe",
    "Source",
    "SourceSummary",
    "SplitRecipe",
    "TokenRows",
    "all_documents",
    "content_key",
    "inspect_sources",
    "load_recipe",
    "load_tokenizer",
    "make_recipe",
    "open_corpus",
    "prepare",
    "source_of",
    "tokenizer_digest",
]
