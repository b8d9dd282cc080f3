"""Draft corpus: texts of all conversations as a source of drafts, saved in one file per conversation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat.speculation import corpus_file
from edgechat.speculation.drafter import FROM_CORPUS, NO_DRAFT, Draft, TokenIndex

_log = logging.getLogger(__name__)
_SEPARATOR: Final = -1
# Minimum length of a text in the corpus; shorter texts rarely supply a draft.
_MIN_TEXT_TOKENS: Final = 8
# Number of tokens at the end of the current text that a search compares; see EDGECHAT_SUFFIX_MAX_MATCH.
_N_END_TOKENS: Final = 64


class CorpusText:
    """Tokens of one reply or attached text in the corpus."""

    def __init__(self, conversation: str, token_bytes: bytes) -> None:
        self.conversation = conversation
        """Folder name of the conversation."""
        self.token_bytes = token_bytes
        """Tokens as packed 32-bit integers."""
        self.start = 0
        """Position of the first token of the text in the index."""
        self.last_used = 0
        """Time of the last use, in ticks of the corpus clock."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens that the text occupies in the index, including the separator."""
        return len(self.token_bytes) // 4 + 1


class Corpus:
    """Searches the texts of many conversations for drafts, and discards the least recently used texts when full.

    The texts of each conversation are saved in a file in the conversation's folder, so texts of unsaved conversations
    must not be added. If that folder is missing, the conversation was deleted: its texts are removed from the corpus
    and not saved again.
    """

    def __init__(
        self, make_index: Callable[[int], TokenIndex], max_tokens: int, n_vocab: int, folder: Path | None
    ) -> None:
        """Create an empty corpus of at most `max_tokens`. Raises MemoryError.

        `make_index(capacity)` creates an index. `folder` contains one folder per conversation; None saves nothing.
        """
        self._make_index = make_index
        self._max_tokens = max_tokens
        self._n_vocab = n_vocab
        self._folder = folder
        self._index = make_index(0)
        self._texts: list[CorpusText] = []
        self._starts: list[int] = []
        self._hashes: set[bytes] = set()
        self._unsaved_conversations: set[str] = set()
        """Conversations with texts that are not saved yet."""
        self._opened_conversations: set[str] = set()
        """Conversations whose folders were created or loaded by this process."""
        self._clock = 0

    def draft_after(self, text_end: Sequence[int], max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that follow the longest match of `text_end` in the corpus."""
        if not self._texts:
            return NO_DRAFT
        tokens, match_length, position = self._index.draft(max_tokens, text_end)
        if not tokens:
            return NO_DRAFT
        self._clock += 1
        self._texts[bisect_right(self._starts, position) - 1].last_used = self._clock
        return Draft(tokens, match_length, FROM_CORPUS)

    # Texts

    def add(self, conversation: str, tokens: Sequence[int]) -> None:
        """Add a text, unless it is short or a duplicate; `conversation` is the folder name of its conversation.

        Raises MemoryError.
        """
        if len(tokens) < _MIN_TEXT_TOKENS or self._max_tokens < _MIN_TEXT_TOKENS:
            return
        text = CorpusText(conversation, array("i", tokens[-(self._max_tokens - 1) :]).tobytes())
        if _hash_text(text) in self._hashes:
            return
        self._insert(text)
        self._unsaved_conversations.add(conversation)
        self._limit_size()

    def _insert(self, text: CorpusText) -> None:
        self._clock += 1
        text.start, text.last_used = len(self._index), self._clock
        self._index.append([*array("i", text.token_bytes), _SEPARATOR])
        self._texts.append(text)
        self._starts.append(text.start)
        self._hashes.add(_hash_text(text))

    def _limit_size(self) -> None:
        """If the corpus exceeds its limit, discard the least recently used texts until it is 3/4 full."""
        if sum(t.n_tokens for t in self._texts) <= self._max_tokens:
            return
        texts: list[CorpusText] = []
        free_tokens = self._max_tokens * 3 // 4
        for text in sorted(self._texts, key=lambda t: -t.last_used):
            free_tokens -= text.n_tokens
            if free_tokens < 0 and texts:
                break
            texts.append(text)
        self._rebuild(texts)

    def _rebuild(self, texts: list[CorpusText]) -> None:
        removed_conversations = {t.conversation for t in self._texts} - {t.conversation for t in texts}
        self._index = self._make_index(0)
        self._texts, self._starts, self._hashes = [], [], set()
        for text in sorted(texts, key=lambda t: t.last_used):
            self._insert(text)
        self._unsaved_conversations -= removed_conversations

    # Files

    def load(self) -> None:
        """Load the files of all conversations, newest first, up to `max_tokens` tokens in total."""
        if self._folder is None or self._max_tokens < _MIN_TEXT_TOKENS:
            return
        files: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"*/{corpus_file.FILE_NAME}"):
                with contextlib.suppress(OSError):
                    files.append((path.stat().st_mtime, path))
        loaded_texts: list[CorpusText] = []
        free_tokens = self._max_tokens
        for _, path in sorted(files, reverse=True):
            texts = [CorpusText(path.parent.name, tokens) for tokens in corpus_file.read(path, self._n_vocab)]
            if texts:
                self._opened_conversations.add(path.parent.name)
            for text in reversed(texts):
                if text.n_tokens <= free_tokens:
                    free_tokens -= text.n_tokens
                    loaded_texts.append(text)
        for text in reversed(loaded_texts):
            if _hash_text(text) not in self._hashes:
                self._insert(text)

    def open_conversation(self, conversation: str) -> None:
        """Create the folder of a conversation. If the folder is missing later, the conversation was deleted."""
        if self._folder is None or conversation in self._opened_conversations:
            return
        try:
            (self._folder / conversation).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            _log.warning("Cannot save the draft corpus: %s", error)
        else:
            self._opened_conversations.add(conversation)

    def remove_deleted_texts(self) -> None:
        """Remove the texts of deleted conversations, whose folders are missing."""
        deleted_names = {name for name in self._opened_conversations if not self._has_folder(name)}
        if any(t.conversation in deleted_names for t in self._texts):
            self._rebuild([t for t in self._texts if t.conversation not in deleted_names])

    def _has_folder(self, conversation: str) -> bool:
        """Return whether the folder of a conversation exists; also return True if the disk cannot be read."""
        try:
            return self._folder is None or (self._folder / conversation).is_dir()
        except OSError:
            return True

    def save_next_conversation(self) -> bool:
        """Save the texts of one conversation with unsaved texts. Return False if no conversation has unsaved texts."""
        if not self._unsaved_conversations or self._folder is None:
            return False
        conversation = self._unsaved_conversations.pop()
        if conversation in self._opened_conversations and self._has_folder(conversation):
            texts = [t.token_bytes for t in self._texts if t.conversation == conversation]
            try:
                corpus_file.write(self._folder / conversation / corpus_file.FILE_NAME, texts)
            except OSError as error:
                _log.warning("Cannot save the draft corpus: %s", error)
        return True


class CorpusDrafter:
    """Drafter of one reply that searches the corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._text_end: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`. Only the end of the text is stored and searched for."""
        self._text_end = list(tokens[-_N_END_TOKENS:])

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text."""
        self._text_end = [*self._text_end, *tokens][-_N_END_TOKENS:]

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that follow the longest match of the current text in the corpus."""
        return self._corpus.draft_after(self._text_end, max_tokens)

    def stop(self) -> None:
        """Do nothing: the drafter has only the end of the text."""


def _hash_text(text: CorpusText) -> bytes:
    return hashlib.blake2b(text.token_bytes, key=text.conversation.encode()[:64], digest_size=16).digest()
