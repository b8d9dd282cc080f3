"""Suffix index of libedgechat: finds the longest earlier match of the end of a text, to draft the next tokens."""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from typing import Final

# Maximum length of a match and of a draft, in tokens: EDGECHAT_SUFFIX_MAX_MATCH in native/src/edgechat.h.
MAX_MATCH_TOKENS: Final = 64


class SuffixIndex:
    """Owner of an edgechat_suffix_index over a token sequence, which `close` or garbage collection frees.

    Not thread-safe. Implements `edgechat.speculation.drafter.TokenIndex`.
    """

    def __init__(self, library: ctypes.CDLL, capacity: int) -> None:
        """Create an index with an initial capacity in tokens; `library` is libedgechat. Raises MemoryError."""
        self._library = library
        self._pointer = library.edgechat_suffix_index_new(capacity)
        if not self._pointer:
            raise MemoryError
        self._finalizer = weakref.finalize(self, library.edgechat_suffix_index_free, self._pointer)
        self._length, self._position = ctypes.c_int32(), ctypes.c_int32()
        self._draft = (ctypes.c_int32 * MAX_MATCH_TOKENS)()
        self._token = (ctypes.c_int32 * 1)()
        """Appended token: most steps append one, and creating an array for it takes longer."""

    def close(self) -> None:
        """Free the index now. A second call does nothing."""
        self._finalizer()

    def __len__(self) -> int:
        return int(self._library.edgechat_suffix_index_size(self._pointer))

    @property
    def n_bytes(self) -> int:
        """Allocated memory, in bytes."""
        return int(self._library.edgechat_suffix_index_bytes(self._pointer))

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens to the indexed text; a negative token separates two texts. Raises MemoryError."""
        self._token[0] = tokens[0] if tokens else 0
        array_of_tokens = self._token if len(tokens) == 1 else _make_int32_array(tokens)
        if self._library.edgechat_suffix_index_append(self._pointer, array_of_tokens, len(tokens)) < 0:
            raise MemoryError

    def truncate(self, size: int) -> None:
        """Remove all but the first `size` tokens."""
        self._library.edgechat_suffix_index_truncate(self._pointer, size)

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        """Return a draft that continues `context`, the match length, and the position of the draft in the indexed text.

        The draft consists of the tokens (at most `max_tokens`) after the longest match of the end of `context` in the
        indexed text; it is empty without a match.
        `context` defaults to the indexed text.
        """
        context_array = None if context is None else _make_int32_array(context)
        count = self._library.edgechat_suffix_index_draft(
            self._pointer, context_array, 0 if context is None else len(context), self._draft,
            min(max_tokens, MAX_MATCH_TOKENS), ctypes.byref(self._length), ctypes.byref(self._position),
        )  # fmt: skip
        return self._draft[:count], self._length.value, self._position.value


def _make_int32_array(tokens: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(tokens)).from_buffer(array("i", tokens)) if tokens else (ctypes.c_int32 * 0)()
