"""Draft corpus: texts of all conversations in which drafts are searched, saved in one file per conversation."""

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
# Minimum length of an indexed text; shorter texts hardly ever match.
_MIN_TOKENS: Final = 8
# Maximum number of tokens at the end of the current text that a search compares; see EDGECHAT_SUFFIX_MAX_MATCH.
_CONTEXT_TOKENS: Final = 64


class CorpusText:
    """Text of one reply or attachment, with the folder name of its conversation."""

    def __init__(self, conversation: str, tokens: bytes) -> None:
        self.conversation = conversation
        self.tokens = tokens
        """Tokens as packed 32-bit integers."""
        self.start = 0
        """Position of the first token in the index."""
        self.last_used = 0
        """Time of the last use, in ticks of the corpus clock."""

    @property
    def n_tokens(self) -> int:
        """Length in the index, including the separator."""
        return len(self.tokens) // 4 + 1


class Corpus:
    """Drafter over the texts of many conversations; discards the least recently used texts above `max_tokens`.

    With a folder, texts are saved in a file per conversation. Texts of unsaved conversations must not be added. A
    missing folder means that the conversation was deleted: its texts are removed and not written again.
    """

    def __init__(
        self, make_index: Callable[[int], TokenIndex], max_tokens: int, n_vocab: int, folder: Path | None
    ) -> None:
        """Create an empty corpus. Raises MemoryError.

        `make_index` creates an index with a capacity; `folder` contains one folder per conversation.
        """
        self._make_index = make_index
        self._max_tokens = max_tokens
        self._n_vocab = n_vocab
        self._folder = folder
        self._index = make_index(0)
        self._texts: list[CorpusText] = []
        self._starts: list[int] = []
        self._hashes: set[bytes] = set()
        self._unsaved: set[str] = set()
        """Conversations whose files lack some of their texts."""
        self._opened: set[str] = set()
        """Conversations whose folders have been created or loaded."""
        self._context: list[int] = []
        self._clock = 0

    # Drafter

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`. Searches use only the end of the text."""
        self._context = list(tokens[-_CONTEXT_TOKENS:])

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text."""
        self._context = [*self._context, *tokens][-_CONTEXT_TOKENS:]

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that follow the longest match in the corpus."""
        if not self._texts:
            return NO_DRAFT
        tokens, match_length, position = self._index.draft(max_tokens, self._context)
        if not tokens:
            return NO_DRAFT
        self._clock += 1
        self._texts[bisect_right(self._starts, position) - 1].last_used = self._clock
        return Draft(tokens, match_length, FROM_CORPUS)

    # Texts

    def add(self, conversation: str, tokens: Sequence[int]) -> None:
        """Add a text of a conversation (its folder name), unless it is short or a duplicate. Raises MemoryError."""
        if len(tokens) < _MIN_TOKENS or self._max_tokens < _MIN_TOKENS:
            return
        text = CorpusText(conversation, array("i", tokens[-(self._max_tokens - 1) :]).tobytes())
        if _hash(text) in self._hashes:
            return
        self._insert(text)
        self._unsaved.add(conversation)
        self._limit()

    def _insert(self, text: CorpusText) -> None:
        self._clock += 1
        text.start, text.last_used = len(self._index), self._clock
        self._index.append([*array("i", text.tokens), _SEPARATOR])
        self._texts.append(text)
        self._starts.append(text.start)
        self._hashes.add(_hash(text))

    def _limit(self) -> None:
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
        removed = {t.conversation for t in self._texts} - {t.conversation for t in texts}
        self._index = self._make_index(0)
        self._texts, self._starts, self._hashes = [], [], set()
        for text in sorted(texts, key=lambda t: t.last_used):
            self._insert(text)
        self._unsaved -= removed

    # Files

    def load(self) -> None:
        """Load the files of all conversations, newest first, up to `max_tokens`."""
        if self._folder is None or self._max_tokens < _MIN_TOKENS:
            return
        files: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"*/{corpus_file.FILE_NAME}"):
                with contextlib.suppress(OSError):
                    files.append((path.stat().st_mtime, path))
        newest_first: list[CorpusText] = []
        free_tokens = self._max_tokens
        for _, path in sorted(files, reverse=True):
            texts = [CorpusText(path.parent.name, tokens) for tokens in corpus_file.read(path, self._n_vocab)]
            if texts:
                self._opened.add(path.parent.name)
            for text in reversed(texts):
                if text.n_tokens <= free_tokens:
                    free_tokens -= text.n_tokens
                    newest_first.append(text)
        for text in reversed(newest_first):
            if _hash(text) not in self._hashes:
                self._insert(text)

    def open_conversation(self, conversation: str) -> None:
        """Create the folder of a conversation. If the folder is missing later, the conversation counts as deleted."""
        if self._folder is None or conversation in self._opened:
            return
        try:
            (self._folder / conversation).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            _log.warning("Cannot save the draft corpus: %s", error)
        else:
            self._opened.add(conversation)

    def remove_deleted(self) -> None:
        """Remove the texts of deleted conversations, whose folders are missing."""
        deleted = {name for name in self._opened if not self._has_folder(name)}
        if any(t.conversation in deleted for t in self._texts):
            self._rebuild([t for t in self._texts if t.conversation not in deleted])

    def _has_folder(self, conversation: str) -> bool:
        """Return False if the conversation was deleted; True if the disk does not respond."""
        try:
            return self._folder is None or (self._folder / conversation).is_dir()
        except OSError:
            return True

    def save_one(self) -> bool:
        """Save the texts of one changed conversation. Returns False if there is no changed conversation."""
        if not self._unsaved or self._folder is None:
            return False
        conversation = self._unsaved.pop()
        if conversation in self._opened and self._has_folder(conversation):
            texts = [t.tokens for t in self._texts if t.conversation == conversation]
            try:
                corpus_file.write(self._folder / conversation / corpus_file.FILE_NAME, texts)
            except OSError as error:
                _log.warning("Cannot save the draft corpus: %s", error)
        return True


def _hash(text: CorpusText) -> bytes:
    return hashlib.blake2b(text.tokens, key=text.conversation.encode()[:64], digest_size=16).digest()
