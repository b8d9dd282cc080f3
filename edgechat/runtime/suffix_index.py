"""Where a text stood before: the suffix index of libedgechat."""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from typing import Final

# EDGECHAT_SUFFIX_MAX_MATCH: longer matches are as good as these.
MAX_MATCH: Final = 64


class SuffixIndex:
    """Owns an edgechat_suffix_index: a text of tokens, in which the end of any text can be looked up.

    Freed by `close`, or when it is no longer referenced. Not thread-safe.
    """

    def __init__(self, library: ctypes.CDLL, capacity: int) -> None:
        """`library` is libedgechat. An index for `capacity` tokens, which can grow. Raises MemoryError."""
        self._library = library
        self._pointer = library.edgechat_suffix_index_new(capacity)
        if not self._pointer:
            raise MemoryError
        self._finalizer = weakref.finalize(self, library.edgechat_suffix_index_free, self._pointer)
        self._length, self._position = ctypes.c_int32(), ctypes.c_int32()
        self._draft = (ctypes.c_int32 * MAX_MATCH)()

    def close(self) -> None:
        """Free it now. A second call does nothing."""
        self._finalizer()

    def __len__(self) -> int:
        return int(self._library.edgechat_suffix_index_size(self._pointer))

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return int(self._library.edgechat_suffix_index_bytes(self._pointer))

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end; a negative one separates texts. Raises MemoryError."""
        if self._library.edgechat_suffix_index_append(self._pointer, _array(tokens), len(tokens)) < 0:
            raise MemoryError

    def truncate(self, size: int) -> None:
        """Forget all but the first `size` tokens."""
        self._library.edgechat_suffix_index_truncate(self._pointer, size)

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        """What followed the longest match of the end of `context`, or of the text itself; [] if nothing did.

        With it the match's length, and where what followed it stands.
        """
        given = None if context is None else _array(context)
        count = self._library.edgechat_suffix_index_draft(
            self._pointer, given, 0 if context is None else len(context), self._draft, min(max_tokens, MAX_MATCH),
            ctypes.byref(self._length), ctypes.byref(self._position),
        )  # fmt: skip
        return self._draft[:count], self._length.value, self._position.value


def _array(tokens: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(tokens)).from_buffer(array("i", tokens)) if tokens else (ctypes.c_int32 * 0)()
