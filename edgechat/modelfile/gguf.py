"""Parser for GGUF headers from untrusted files.

Every count and length is checked against the size of the file before memory for it is allocated, so that a hostile
header cannot exhaust memory or time. Format: ggml/include/gguf.h of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgechat.errors import ModelFileError
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.tensor_types import TENSOR_TYPES

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER_BYTES: Final = 64 << 20
"""Maximum size of a header; the largest known headers have about 16 MiB."""
MAX_TEXT_BYTES: Final = 4 << 20
"""Maximum length of a string value; chat templates have about 20 kB."""
MAX_TENSORS: Final = 1 << 17
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 1 << 16
MAX_ARRAY_LENGTH: Final = 4096
"""Maximum length of a stored array. Longer arrays are vocabularies, of which only the length is stored."""
MAX_STORED_ELEMENTS: Final = 1 << 18
"""Maximum number of elements in all stored arrays together, which limits memory."""
MAX_DIMS: Final = 4

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]


# Read-ahead sizes for local files and for network streams.
_READ_AHEAD_BYTES: Final = 1 << 20
_STREAM_READ_AHEAD_BYTES: Final = 64 << 10


def read_gguf_header(path: Path) -> ModelHeader:
    """Read and check the header of one GGUF file, which may be a part of a split model.

    Raises ModelFileError with the path and the reason.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory. Choose a .gguf file in this directory.")
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _HeaderParser(str(path), file.read, size, _READ_AHEAD_BYTES).header()
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def read_gguf_stream(name: str, read: Callable[[int], bytes], size: int) -> ModelHeader:
    """Read and check the header from a stream of `size` bytes; `read(n)` returns the next n bytes or fewer.

    Little more than the header is read. Raises ModelFileError and the exceptions of `read`.
    """
    return _HeaderParser(name, read, size, _STREAM_READ_AHEAD_BYTES).header()


class _HeaderParser:
    """Parser of one header. `_window` contains all bytes read so far; `_at` is the position of the next field."""

    def __init__(self, name: str, read: Callable[[int], bytes], size: int, read_ahead: int) -> None:
        self._name = name
        self._read = read
        self._size = size
        self._read_ahead = read_ahead
        self._window = bytearray()
        self._at = 0
        self._n_stored = 0

    def header(self) -> ModelHeader:
        if self._size == 0:
            raise self._error("is empty")
        if self._take(4, "the first bytes") != MAGIC:
            raise self._error("is not a GGUF file (it does not start with GGUF)")
        version = self._scalar(_U32, "the GGUF version")
        if version not in VERSIONS:
            raise self._error(f"has GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read")
        n_tensors = self._count("tensors", MAX_TENSORS, least_bytes=24)
        n_keys = self._count("metadata entries", MAX_KEYS, least_bytes=13)
        metadata: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_keys):
            key = self._string("a metadata key", MAX_KEY_BYTES)
            if key in metadata or key in lengths:
                raise self._error(f"has the metadata key {key!r} twice")
            value = self._value(self._scalar(_U32, key), key)
            if isinstance(value, _UnstoredArray):
                lengths[key] = value.length
            else:
                metadata[key] = value
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"has an alignment of {alignment!r}, which is not a power of two")
        data_offset = -(-self._at // alignment) * alignment
        self._check_ranges(tensors, data_offset, alignment)
        lengths |= {k: len(v) for k, v in metadata.items() if isinstance(v, list)}
        return ModelHeader(
            path=self._name, file_bytes=self._size, version=version, metadata=metadata,
            array_lengths=lengths, tensors=tuple(tensors), data_offset=data_offset,
        )  # fmt: skip

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind], key)
        if kind == _STRING:
            return self._string(key, MAX_TEXT_BYTES)
        if kind != _ARRAY:
            raise self._error(f"has a value of unknown type {kind} for {key!r}")
        element = self._scalar(_U32, key)
        length = self._count(f"elements of {key!r}", MAX_HEADER_BYTES, least_bytes=self._least_bytes(element, key))
        if length <= MAX_ARRAY_LENGTH and self._n_stored + length <= MAX_STORED_ELEMENTS:
            self._n_stored += length
            return [self._value(element, key) for _ in range(length)]
        self._skip_elements(element, length, key)
        return _UnstoredArray(length)

    def _least_bytes(self, element: int, key: str) -> int:
        if element in _SCALARS:
            return _SCALARS[element].size
        if element == _STRING:
            return 8
        raise self._error(f"has an array with elements of invalid type {element} for {key!r}")

    def _skip_elements(self, element: int, length: int, key: str) -> None:
        if element in _SCALARS:
            self._fill(_SCALARS[element].size * length, key)
            self._at += _SCALARS[element].size * length
        else:
            self._skip_strings(length, key)

    def _skip_strings(self, length: int, key: str) -> None:
        # This loop takes most of the time of reading a header, because vocabularies have up to 260,000 strings.
        unpack, remaining = _U64.unpack_from, length
        while remaining:
            window, at = self._window, self._at
            end, before = len(window) - 8, remaining
            for remaining in range(before, 0, -1):  # noqa: B007  (used after a break)
                if at > end:
                    break
                at += unpack(window, at)[0] + 8
            else:
                remaining = 0
            if at > self._size:
                raise self._error(f"has a string longer than the whole file for {key!r}")
            self._at = at
            if remaining or at > len(window):
                self._fill(8 if remaining else 0, key)

    def _tensor(self) -> Tensor:
        name = self._string("a tensor's name", MAX_KEY_BYTES)
        n_dims = self._scalar(_U32, name)
        if not 0 < n_dims <= MAX_DIMS:
            raise self._error(f"has {n_dims} dimensions for the tensor {name!r}; valid are 1 to {MAX_DIMS}")
        shape = tuple(self._scalar(_U64, name) for _ in range(n_dims))
        type_id = self._scalar(_U32, name)
        offset = self._scalar(_U64, name)
        if type_id not in TENSOR_TYPES:
            raise self._error(f"has the tensor {name!r} of unknown type {type_id}: update edgechat")
        kind = TENSOR_TYPES[type_id]
        count = math.prod(shape)
        if count == 0 or count >= 1 << 62 or shape[0] % kind.block_size:
            raise self._error(f"has the tensor {name!r} of invalid shape {'x'.join(map(str, shape))} of {kind.name}")
        return Tensor(name, shape, type_id, offset, count // kind.block_size * kind.block_bytes)

    def _check_ranges(self, tensors: list[Tensor], data_offset: int, alignment: int) -> None:
        if len({t.name for t in tensors}) != len(tensors):
            raise self._error("has two tensors of the same name")
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset % alignment:
                raise self._error(
                    f"has the tensor {tensor.name!r} at offset {tensor.offset}, which is not a multiple of {alignment}"
                )
            if tensor.offset < end:
                raise self._error(f"has overlapping tensors {before!r} and {tensor.name!r}")
            end, before = tensor.offset + tensor.size_bytes, tensor.name
            if data_offset + end > self._size:
                raise self._error(
                    f"ends too early: the tensor {tensor.name!r} ends at byte {data_offset + end}, "
                    f"but the file has {self._size} bytes; download it again"
                )

    def _count(self, what: str, limit: int, *, least_bytes: int) -> int:
        count: int = self._scalar(_U64, f"the number of {what}")
        if count > limit or count * least_bytes > self._size - self._at:
            raise self._error(f"claims {count} {what}, which a file of {self._size} bytes cannot hold")
        return count

    def _string(self, what: str, limit: int) -> str:
        length = self._scalar(_U64, what)
        if length > min(limit, self._size - self._at):
            raise self._error(
                f"claims a string of {length} bytes for {what}, which a file of {self._size} bytes cannot hold"
            )
        return self._take(length, what).decode("utf-8", "replace")

    def _scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack(self._take(form.size, what))[0]

    def _take(self, count: int, what: str) -> bytearray:
        self._fill(count, what)
        start, self._at = self._at, self._at + count
        return self._window[start : self._at]

    def _fill(self, count: int, what: str) -> None:
        """Extend the window to `count` bytes after the current position."""
        end = self._at + count
        if end <= len(self._window):
            return
        if end > self._size:
            raise self._error(f"ends too early, in {what} (the file has {self._size} bytes); download it again")
        if end > MAX_HEADER_BYTES:
            raise self._error(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB, at {what}")
        target = min(self._size, max(end, len(self._window) + self._read_ahead))
        while len(self._window) < end:
            more = self._read(target - len(self._window))
            if not more:
                raise self._error("was truncated while it was read")
            self._window += more

    def _error(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._name} {problem}")


class _UnstoredArray:
    """Placeholder for an array of which only the length is stored."""

    def __init__(self, length: int) -> None:
        self.length = length
