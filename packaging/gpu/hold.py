"""Hold the memory of a GPU, so that a model no longer fits: hold.py MODULE LEFT_BYTES. Ends when its input ends.

Prints the number of bytes that it holds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from edgechat.runtime.backends.bundle import find_bundle

# Pieces of memory, and what is tried below the smallest one.
PIECE_BYTES = 1 << 30
SMALLEST_BYTES = 16 << 20


def main() -> None:
    """Allocate all memory of the first device of the module but LEFT_BYTES, and wait."""
    module, left_bytes = sys.argv[1], int(sys.argv[2])
    bundle = find_bundle()
    base, ggml = (ctypes.CDLL(str(bundle.library_path(name))) for name in ("ggml-base", "ggml"))

    def call(library: ctypes.CDLL, name: str, *arguments: Any) -> int:
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        return function(*arguments) or 0

    backend = call(ggml, "ggml_backend_load", os.fsencode(module))
    device = call(base, "ggml_backend_reg_dev_get", ctypes.c_void_p(backend), ctypes.c_size_t(0))
    kind = call(base, "ggml_backend_dev_buffer_type", ctypes.c_void_p(device))
    held, piece = 0, PIECE_BYTES
    while piece >= SMALLEST_BYTES:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call(base, "ggml_backend_dev_memory", ctypes.c_void_p(device), ctypes.byref(free), ctypes.byref(total))
        has_room = min(free.value, total.value - held) >= left_bytes + piece
        buffer = has_room and call(
            base, "ggml_backend_buft_alloc_buffer", ctypes.c_void_p(kind), ctypes.c_size_t(piece)
        )
        if buffer:
            call(base, "ggml_backend_buffer_clear", ctypes.c_void_p(buffer), ctypes.c_uint8(1))
            held += piece
        else:
            piece //= 2
    print(held, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
