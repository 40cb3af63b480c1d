"""Corpora: names and paths, readers, the token cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from data_utils.corpora.build import iter_source
from data_utils.corpora.cache import CacheOptions, TokenizedCorpus, open_corpus
from data_utils.corpora.documents import ConcatDocuments, Documents, InMemoryDocuments
from data_utils.corpora.registry import DEFAULT_DATA_ROOT, find_legacy, resolve_source
from data_utils.tokenizers.base import Tokenizer

__all__ = ["CacheOptions", "DEFAULT_DATA_ROOT", "Documents", "load_documents", "open_corpus", "resolve_source"]


def load_documents(names: Sequence[str], tokenizer: Tokenizer, options: CacheOptions, *, text_key: str = "text",
                   loose_json: bool = False, max_documents: int | None = None) -> Documents:
    """Tokenized documents of one or more corpora, concatenated.

    Args:
        names: registered names (below ``options.data_root``) or paths; also a ``.lazy`` folder of the release.
        max_documents: only the first documents of each corpus, tokenized in memory without a cache (dry runs).
    """
    parts: list[Documents] = []
    for name in names:
        old = find_legacy(name, options.data_root)
        if old is not None:
            parts.append(TokenizedCorpus(old, tokenizer, in_memory=options.in_memory))
            continue
        source = resolve_source(name, data_root=options.data_root, text_key=text_key, loose_json=loose_json)
        if max_documents is None:
            parts.append(open_corpus(source, tokenizer, options))
        else:
            documents = list(islice(iter_source(source), max_documents))
            if not documents:
                raise ValueError(f"{source.location} holds no document")
            prompts, texts = zip(*documents)
            parts.append(InMemoryDocuments(tokenizer.encode_batch(texts), tokenizer.encode_batch(prompts)))
    return parts[0] if len(parts) == 1 else ConcatDocuments(parts)
