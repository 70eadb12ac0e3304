"""From text and chats to rows of tokens: sources -> splits -> tokens -> packed rows on disk."""

from blockexpand.corpus.documents import Document, content_key, split_of
from blockexpand.corpus.preparing import load_recipe, prepare
from blockexpand.corpus.reading import documents
from blockexpand.corpus.recipe import PrepareRecipe, SplitRecipe
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus
from blockexpand.corpus.sources import JsonSource, ProseSource, TextSource
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest

__all__ = [
    "Corpus",
    "Document",
    "JsonSource",
    "PrepareRecipe",
    "ProseSource",
    "SplitRecipe",
    "TextSource",
    "TokenRows",
    "content_key",
    "documents",
    "load_recipe",
    "load_tokenizer",
    "open_corpus",
    "prepare",
    "split_of",
    "tokenizer_digest",
]
