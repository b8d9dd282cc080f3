"""Native objects of a context, and the error about a context that cannot be replaced by one of another length."""

from __future__ import annotations

import ctypes
from typing import Any


class ResizeError(Exception):
    """Raised when a context cannot be opened with another length; its message is the reason."""

    def __init__(self, reason: str, *, lost_sequences: bool) -> None:
        """If `lost_sequences` is True, all sequences are empty; otherwise they and the context are unchanged."""
        super().__init__(reason)
        self.lost_sequences = lost_sequences


class NativeHandles:
    """Native objects of a context. The llama_context can be replaced; the others exist as long as their owner."""

    def __init__(self, llama: Any, native: ctypes.CDLL, abort_flag: int, thread_pool: int, batch: object) -> None:
        self.pointer: Any = None
        self.thread_pool = thread_pool
        self._llama = llama
        self._native = native
        self._abort_flag = abort_flag
        self._batch = batch

    def free_context(self) -> None:
        """Free the llama_context, if there is one."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._llama.llama_free(pointer)

    def free(self) -> None:
        """Free all objects in the order that llama.cpp requires: first the context, which points to the others."""
        self.free_context()
        self._llama.llama_batch_free(self._batch)
        self._native.edgechat_threadpool_free(self.thread_pool)
        self._native.edgechat_abort_flag_free(self._abort_flag)
