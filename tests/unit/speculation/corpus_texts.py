"""Helpers that fill a draft corpus and search it."""

from __future__ import annotations

from pathlib import Path

from edgechat.speculation.corpus import Corpus
from tests.suffix_reference import PlainIndex

N_VOCAB = 1000


def load_corpus(folder: Path | None = None, max_tokens: int = 1000) -> Corpus:
    corpus = Corpus(PlainIndex, max_tokens, N_VOCAB, folder)
    corpus.load()
    return corpus


def add(corpus: Corpus, name: str, tokens: list[int]) -> None:
    """Add a text as the engine does: the folder of the conversation is created first."""
    corpus.open_conversation(name)
    corpus.add(name, tokens)


def save(corpus: Corpus) -> None:
    while corpus.save_next_conversation():
        pass


def text(start: int, size: int = 10) -> list[int]:
    return list(range(start, start + size))


def draft(corpus: Corpus, context: list[int]) -> list[int]:
    return corpus.draft_after(context, 4).tokens
