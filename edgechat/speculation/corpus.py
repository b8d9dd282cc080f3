"""What was said in all conversations, as far as there is room: what one says, another may repeat."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.speculation.drafter import NO_DRAFT, OTHERS, Draft, Index

_log = logging.getLogger(__name__)
# The last byte is the version of the format.
_MAGIC: Final = b"edgechat texts\x01"
_FILE: Final = "said.tokens"
_SEPARATOR: Final = -1
# Shorter texts hold nothing that is worth finding.
_MIN_TOKENS: Final = 8
# What a search looks at; see EDGECHAT_SUFFIX_MAX_MATCH.
_CONTEXT_TOKENS: Final = 64


class Text:
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

    A `Drafter`. What must not be kept must not be added. Files that cannot be read are removed.
    """

    def __init__(self, make_index: Callable[[int], Index], max_tokens: int, n_vocab: int, folder: Path | None) -> None:
        """`folder` holds a folder for each conversation, or will. Raises MemoryError."""
        self._make_index = make_index
        self._max_tokens = max_tokens
        self._n_vocab = n_vocab
        self._folder = folder
        self._index = make_index(0)
        self._texts: list[Text] = []
        self._starts: list[int] = []
        self._known: set[bytes] = set()
        self._changed: set[str] = set()
        self._written: set[str] = set()
        self._recent: list[int] = []
        self._clock = 0

    # As a drafter

    def begin(self, tokens: Sequence[int]) -> None:
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
        return Draft(tokens, match_length, OTHERS)

    # Texts

    def add(self, conversation: str, tokens: Sequence[int]) -> None:
        """Keep what was said in a conversation, named by its folder."""
        if len(tokens) < _MIN_TOKENS or self._max_tokens < _MIN_TOKENS:
            return
        text = Text(conversation, array("i", tokens[-(self._max_tokens - 1) :]).tobytes())
        if self._key(text) in self._known:
            return
        self._put(text)
        self._changed.add(conversation)
        self._limit()

    def _key(self, text: Text) -> bytes:
        return hashlib.blake2b(text.tokens, key=text.conversation.encode()[:64], digest_size=16).digest()

    def _put(self, text: Text) -> None:
        self._clock += 1
        text.start, text.used = len(self._index), self._clock
        self._index.append([*array("i", text.tokens), _SEPARATOR])
        self._texts.append(text)
        self._starts.append(text.start)
        self._known.add(self._key(text))

    def _limit(self) -> None:
        """Forget texts if there are too many; a quarter more than that, so that it is not done for each."""
        total = sum(t.n_tokens for t in self._texts)
        if total <= self._max_tokens:
            return
        kept: list[Text] = []
        room = self._max_tokens * 3 // 4
        for text in sorted(self._texts, key=lambda t: -t.used):
            room -= text.n_tokens
            if room < 0 and kept:
                break
            kept.append(text)
        self._rebuild(kept)

    def _rebuild(self, texts: list[Text]) -> None:
        gone = {t.conversation for t in self._texts} - {t.conversation for t in texts}
        self._index = self._make_index(0)
        self._texts, self._starts, self._known = [], [], set()
        for text in sorted(texts, key=lambda t: t.used):
            self._put(text)
        self._changed -= gone

    # Files

    def load(self) -> None:
        """Read what is kept, the newest first, as far as there is room."""
        found: list[tuple[float, Path]] = []
        if self._folder is not None:
            with contextlib.suppress(OSError):
                for path in self._folder.glob(f"*/{_FILE}"):
                    with contextlib.suppress(OSError):
                        found.append((path.stat().st_mtime, path))
        texts: list[list[Text]] = []
        room = self._max_tokens
        for _, path in sorted(found, reverse=True):
            read = list(self._read(path))
            room -= sum(t.n_tokens for t in read)
            if room < 0:
                break
            texts.append(read)
            self._written.add(path.parent.name)
        for read in reversed(texts):
            for text in read:
                if self._key(text) not in self._known:
                    self._put(text)

    def _read(self, path: Path) -> Iterator[Text]:
        try:
            # Five bytes a token are more than there can be.
            data = path.read_bytes() if path.stat().st_size <= 5 * self._max_tokens + 4096 else b""
        except OSError:
            return
        body = data[len(_MAGIC) + 4 :]
        texts: list[bytes] = []
        if data.startswith(_MAGIC + _crc(body)):
            with contextlib.suppress(msgspec.MsgspecError):
                texts = msgspec.msgpack.decode(body, type=list[bytes])
        if not texts or not all(self._is_sound(t) for t in texts):
            _log.warning("the drafts in %s cannot be used, and are removed", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return
        for text in texts:
            yield Text(path.parent.name, text)

    def _is_sound(self, text: bytes) -> bool:
        if len(text) % 4 or not text:
            return False
        tokens = array("i", text)
        return min(tokens) >= 0 and max(tokens) < self._n_vocab

    def forget_deleted(self) -> None:
        """Forget what was said in conversations whose folders somebody removed: they were deleted."""
        folder = self._folder
        if folder is None:
            return
        gone = {name for name in self._written if not (folder / name).is_dir()}
        if gone:
            self._written -= gone
            self._rebuild([t for t in self._texts if t.conversation not in gone])
            self._changed -= gone

    def save_some(self) -> bool:
        """Write what was said in one conversation; False if there was nothing to write."""
        if not self._changed or self._folder is None:
            return False
        conversation = self._changed.pop()
        try:
            self._write(self._folder / conversation, [t.tokens for t in self._texts if t.conversation == conversation])
        except OSError as error:
            _log.warning("drafts are not kept: %s", error)
        else:
            self._written.add(conversation)
        return True

    def _write(self, folder: Path, texts: list[bytes]) -> None:
        body = msgspec.msgpack.encode(texts)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = folder / f"{_FILE}.{os.getpid()}.part"
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_MAGIC + _crc(body) + body)
            aside.replace(folder / _FILE)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()


def _crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
