"""From text and chats to rows of tokens: sources -> documents -> splits -> packed rows on disk."""

from blockexpand.corpus.copies import content_key
from blockexpand.corpus.files import Document, all_documents
from blockexpand.corpus.inspection import digest_sources, look_at_sources
from blockexpand.corpus.preparation import prepare
from blockexpand.corpus.recipe import PrepareRecipe, Source, SplitRecipe, load_recipe, make_recipe, source_of
from blockexpand.corpus.rows import Corpus, TokenRows, open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest
