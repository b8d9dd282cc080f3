"""What was said in all conversations, as far as there is room: what one says, another may repeat."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat.speculation import corpus_file as files
from edgechat.speculation.drafter import FROM_CORPUS, NO_DRAFT, Draft, TokenIndex

_log = logging.getLogger(__name__)
_SEPARATOR: Final = -1
# Shorter texts hold nothing that is worth finding.
_MIN_TOKENS: Final = 8
# What a search looks at; see EDGECHAT_SUFFIX_MAX_MATCH.
_CONTEXT_TOKENS: Final = 64


class CorpusText:
    """What was said at one time, and in which conversation."""

    def __init__(self, conversation: str, tokens: bytes) -> None:
        self.conversation = conversation
        """The name of the conversation's folder."""
        self.tokens = tokens
        """32-bit integers."""
        self.start = 0
        """Where it stands in the index."""
        self.used = 0
        """When it was added or of use last, on the corpus's clock."""

    @property
    def n_tokens(self) -> int:
        """Its length, and the separator's."""
        return len(self.tokens) // 4 + 1


class Corpus:
    """An index over the texts of many conversations, the least recently used ones forgotten; in files, if given a folder.

    A `Drafter`. What must not be kept must not be added. A conversation whose folder somebody removed was deleted: its
    texts go, and the folder is not made again.
    """

    def __init__(
        self, make_index: Callable[[int], TokenIndex], max_tokens: int, n_vocab: int, folder: Path | None
    ) -> None:
        """`folder` holds a folder for each conversation, or will. Raises MemoryError."""
        self._make_index = make_index
        self._max_tokens = max_tokens
        self._n_vocab = n_vocab
        self._folder = folder
        self._index = make_index(0)
        self._texts: list[CorpusText] = []
        self._starts: list[int] = []
        self._hashes: set[bytes] = set()
        self._changed: set[str] = set()
        self._opened: set[str] = set()
        """Conversations whose folders were there."""
        self._recent: list[int] = []
        self._clock = 0

    # As a drafter

    def start(self, tokens: Sequence[int]) -> None:
        """Only the end of a text is looked up."""
        self._recent = list(tokens[-_CONTEXT_TOKENS:])

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""
        self._recent = [*self._recent, *tokens][-_CONTEXT_TOKENS:]

    def draft(self, max_tokens: int) -> Draft:
        """What followed the longest match in other texts."""
        if not self._texts:
            return NO_DRAFT
        tokens, match_length, position = self._index.draft(max_tokens, self._recent)
        if not tokens:
            return NO_DRAFT
        self._clock += 1
        self._texts[bisect_right(self._starts, position) - 1].used = self._clock
        return Draft(tokens, match_length, FROM_CORPUS)

    # Texts

    def add(self, conversation: str, tokens: Sequence[int]) -> None:
        """Keep what was said in a conversation, named by its folder. Raises MemoryError."""
        if len(tokens) < _MIN_TOKENS or self._max_tokens < _MIN_TOKENS:
            return
        text = CorpusText(conversation, array("i", tokens[-(self._max_tokens - 1) :]).tobytes())
        if self._key(text) in self._hashes:
            return
        self._put(text)
        self._changed.add(conversation)
        self._limit()

    def _key(self, text: CorpusText) -> bytes:
        return hashlib.blake2b(text.tokens, key=text.conversation.encode()[:64], digest_size=16).digest()

    def _put(self, text: CorpusText) -> None:
        self._clock += 1
        text.start, text.used = len(self._index), self._clock
        self._index.append([*array("i", text.tokens), _SEPARATOR])
        self._texts.append(text)
        self._starts.append(text.start)
        self._hashes.add(self._key(text))

    def _limit(self) -> None:
        """Forget texts if there are too many; a quarter more than that, so that it is not done for each."""
        total = sum(t.n_tokens for t in self._texts)
        if total <= self._max_tokens:
            return
        kept: list[CorpusText] = []
        room = self._max_tokens * 3 // 4
        for text in sorted(self._texts, key=lambda t: -t.used):
            room -= text.n_tokens
            if room < 0 and kept:
                break
            kept.append(text)
        self._rebuild(kept)

    def _rebuild(self, texts: list[CorpusText]) -> None:
        gone = {t.conversation for t in self._texts} - {t.conversation for t in texts}
        self._index = self._make_index(0)
        self._texts, self._starts, self._hashes = [], [], set()
        for text in sorted(texts, key=lambda t: t.used):
            self._put(text)
        self._changed -= gone

    # Files

    def load(self) -> None:
        """Read what is kept, the newest first, as far as there is room."""
        if self._folder is None or self._max_tokens < _MIN_TOKENS:
            return
        found: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"*/{files.FILE}"):
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime, path))
        read: list[CorpusText] = []
        room = self._max_tokens
        for _, path in sorted(found, reverse=True):
            texts = [CorpusText(path.parent.name, tokens) for tokens in files.read(path, self._n_vocab)]
            if texts:
                self._opened.add(path.parent.name)
            for text in reversed(texts):
                if text.n_tokens <= room:
                    room -= text.n_tokens
                    read.append(text)
        for text in reversed(read):
            if self._key(text) not in self._hashes:
                self._put(text)

    def open_conversation(self, conversation: str) -> None:
        """Make the folder of a conversation that is going on, so that it is known when it is deleted."""
        if self._folder is None or conversation in self._opened:
            return
        try:
            (self._folder / conversation).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            _log.warning("drafts are not kept: %s", error)
        else:
            self._opened.add(conversation)

    def remove_deleted(self) -> None:
        """Forget what was said in conversations whose folders are gone."""
        gone = {name for name in self._opened if not self._is_there(name)}
        if any(t.conversation in gone for t in self._texts):
            self._rebuild([t for t in self._texts if t.conversation not in gone])

    def _is_there(self, conversation: str) -> bool:
        """False if the conversation was deleted; a disk that does not answer proves nothing."""
        try:
            return self._folder is None or (self._folder / conversation).is_dir()
        except OSError:
            return True

    def save_one(self) -> bool:
        """Write what was said in one conversation; False if there was nothing to write."""
        if not self._changed or self._folder is None:
            return False
        conversation = self._changed.pop()
        if conversation in self._opened and self._is_there(conversation):
            said = [t.tokens for t in self._texts if t.conversation == conversation]
            try:
                files.write(self._folder / conversation / files.FILE, said)
            except OSError as error:
                _log.warning("drafts are not kept: %s", error)
        return True
