"""Bindings to libedgechat-chat for the render process: llama.cpp's chat templates, call grammars and output parsers.

The requests and replies are JSON; `native/src/chat/edgechat_chat.h` describes them.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Final

from edgechat.errors import RuntimeLoadError
from edgechat.runtime.backends.bundle import find_bundle

_FILE_NAMES: Final = {"win32": "edgechat-chat.dll", "darwin": "libedgechat-chat.dylib"}


class ChatLibrary:
    """Chat library, loaded into this process. Not thread-safe."""

    def __init__(self) -> None:
        """Load the library from the native bundle. Raises RuntimeLoadError if it is missing or cannot be loaded."""
        path = Path(find_bundle().directory) / _FILE_NAMES.get(sys.platform, "libedgechat-chat.so")
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise RuntimeLoadError(f"Cannot load the chat library: {error}. Reinstall edgechat.") from error
        self._call = library.edgechat_chat_call
        self._call.argtypes, self._call.restype = [ctypes.c_char_p], ctypes.c_void_p
        self._free = library.edgechat_chat_free
        self._free.argtypes, self._free.restype = [ctypes.c_void_p], None

    def call(self, request: bytes) -> bytes:
        """Send a JSON request to the library and return its JSON reply, with the field `error` after a failure."""
        pointer = self._call(request)
        if not pointer:
            return b'{"error": "out of memory"}'
        try:
            return ctypes.string_at(pointer)
        finally:
            self._free(pointer)
