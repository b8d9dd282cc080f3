"""Exact nearest-neighbour search in blocks of 8-bit vectors with libedgechat-vectors."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgechat.errors import RuntimeLoadError
from edgechat.runtime.backends.bundle import find_bundle

# EDGECHAT_VECTORS_MAX_DIMS and EDGECHAT_VECTORS_MAX_QUERY in native/src/vectors/edgechat_vectors.h.
MAX_DIMS: Final = 8192
MAX_QUERY: Final = 2047


class ScannedBlock(msgspec.Struct, frozen=True):
    """Vectors with their ids and factors, in the byte order of this machine."""

    n_vectors: int
    n_dims: int
    ids: bytes
    """64-bit integers."""
    factors: bytes
    """32-bit floating-point numbers."""
    vectors: bytes
    """`n_vectors` times `n_dims` 8-bit integers."""


class VectorLibrary:
    """Bindings to libedgechat-vectors, which this process loads without llama.cpp. Threads can share it."""

    def __init__(self) -> None:
        """Load the library from the native bundle. Raises RuntimeLoadError if it is missing or cannot be loaded."""
        path = find_bundle().library_path("edgechat-vectors")
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise RuntimeLoadError(f"Cannot load {path}: {error}. Reinstall edgechat.") from error
        self._scan = library.edgechat_vectors_scan
        pointer = ctypes.c_void_p
        self._scan.argtypes = [
            pointer, pointer, pointer, ctypes.c_int64, ctypes.c_int32, pointer, pointer, pointer, ctypes.c_int32,
            ctypes.c_int32,
        ]  # fmt: skip
        self._scan.restype = ctypes.c_int32
        self._select = library.edgechat_vectors_select
        self._select.argtypes, self._select.restype = [ctypes.c_int32], ctypes.c_char_p

    def select_kernel(self, number: int = -1) -> str:
        """Select a kernel by its number, or the best one for -1; return its name, or "" if it is not supported."""
        name: bytes | None = self._select(number)
        return (name or b"").decode()

    def find_nearest(
        self, blocks: Iterable[ScannedBlock], query: array[int], n_results: int
    ) -> list[tuple[float, int]]:
        """Return the `n_results` largest products of factor and dot product, with their ids, in no order."""
        scores, ids = (ctypes.c_float * n_results)(), (ctypes.c_int64 * n_results)()
        n_found = 0
        address, _ = query.buffer_info()
        for block in blocks:
            check_block(block, len(query))
            n_found = self._scan(
                block.vectors, block.factors, block.ids, block.n_vectors, block.n_dims, address, scores, ids,
                n_found, n_results,
            )  # fmt: skip
        return list(zip(scores[:n_found], ids[:n_found], strict=True))


def check_block(block: ScannedBlock, n_dims: int) -> None:
    """Raise ValueError if the library would read outside the data of a block."""
    n = block.n_vectors
    lengths = (len(block.ids), len(block.factors), len(block.vectors))
    if n < 0 or block.n_dims != n_dims or lengths != (8 * n, 4 * n, n_dims * n):
        raise ValueError(f"A block of {n} vectors with {block.n_dims} values has parts of {lengths} bytes.")


@functools.cache
def load_library() -> VectorLibrary | None:
    """Load the library once; return None if the bundle is of an earlier version and does not contain it."""
    try:
        return VectorLibrary()
    except RuntimeLoadError:
        return None


def find_nearest(
    library: VectorLibrary, blocks: Iterable[ScannedBlock], query: Sequence[float], n_results: int
) -> list[tuple[int, float]]:
    """Return the `n_results` vectors whose dot product with `query` is largest, as pairs of ID and product.

    The largest product is first. Equal products are in the order of the ids.
    """
    largest = max(map(abs, query), default=0.0)
    if not largest or n_results < 1 or len(query) > MAX_DIMS:
        return []
    integers = array("h", [round(value / largest * MAX_QUERY) for value in query])
    found = library.find_nearest(blocks, integers, n_results)
    found.sort(key=lambda item: (-item[0], item[1]))
    return [(chunk_id, score * largest / MAX_QUERY) for score, chunk_id in found]
