"""Parser for GGUF headers from untrusted files.

Every count and length is checked against the size of the file before memory is allocated, so that a hostile header
cannot exhaust memory or time. The format is defined in ggml/include/gguf.h of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgechat.errors import ModelFileError
from edgechat.file_formats import HEAD_BYTES
from edgechat.files import open_regular
from edgechat.modelfile.file_kinds import (
    describe_file_part,
    describe_other_format,
    describe_unsupported_version,
)
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.tensor_types import TENSOR_TYPES

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER_BYTES: Final = 64 << 20
"""Maximum size of a header. The largest known headers have about 16 MiB."""
MAX_TEXT_BYTES: Final = 4 << 20
"""Maximum length of a string value. Chat templates have about 20 kB."""
MAX_TENSORS: Final = 1 << 17
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 1 << 16
MAX_ARRAY_LENGTH: Final = 4096
"""Maximum length of a stored array. For longer arrays, which are vocabularies, only the length is stored."""
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
    """Read and check the header of one GGUF file, which can be a part of a split model.

    Raises ModelFileError with the path and the reason.
    """
    try:
        _check_regular_file(path)
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _HeaderParser(str(path), file.read, size, _READ_AHEAD_BYTES).parse()
    except ModelFileError:
        part_description = describe_file_part(path)
        if part_description:
            raise ModelFileError(f"{path} {part_description}") from None
        raise
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_regular_file(path: Path) -> None:
    """Raise ModelFileError for a directory, and for pipes and devices, because reading them might never end."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a directory. Choose a .gguf file in this directory.")
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path} is a pipe or a device, not a regular file. Choose a .gguf file.")


def read_gguf_stream(name: str, read: Callable[[int], bytes], size: int) -> ModelHeader:
    """Read and check the GGUF header at the start of a stream of `size` bytes.

    `read(n)` returns the next bytes of the stream, at most n; `name` is used in error messages. Reads at most 64 KiB
    after the header. Raises ModelFileError and the exceptions of `read`.
    """
    return _HeaderParser(name, read, size, _STREAM_READ_AHEAD_BYTES).parse()


class _HeaderParser:
    """Parser of one GGUF header. `_window` contains all bytes read so far; the next field starts at `_position`."""

    def __init__(self, name: str, read: Callable[[int], bytes], size: int, read_ahead_bytes: int) -> None:
        self._name = name
        self._read = read
        self._size = size
        self._read_ahead_bytes = read_ahead_bytes
        self._window = bytearray()
        self._position = 0
        self._n_stored = 0

    def parse(self) -> ModelHeader:
        if self._size == 0:
            raise self._make_error("is empty; download it again")
        self._fill_window(min(self._size, HEAD_BYTES), "the first bytes")
        head = bytes(self._window[:HEAD_BYTES])
        if not head.startswith(MAGIC[: len(head)]):
            raise self._make_error(describe_other_format(head, self._size))
        self._read_bytes(len(MAGIC), "the first bytes")
        version = self._read_scalar(_U32, "the GGUF version")
        if version not in VERSIONS:
            raise self._make_error(describe_unsupported_version(version, VERSIONS))
        n_tensors = self._read_count("tensors", MAX_TENSORS, min_bytes=24)
        n_keys = self._read_count("metadata entries", MAX_KEYS, min_bytes=13)
        metadata: dict[str, Any] = {}
        array_lengths: dict[str, int] = {}
        value_offsets: dict[str, int] = {}
        for _ in range(n_keys):
            key = self._read_string("a metadata key", MAX_KEY_BYTES)
            if key in value_offsets:
                raise self._make_error(f"has the metadata key {key!r} twice")
            type_id = self._read_scalar(_U32, key)
            value_offsets[key] = self._position
            value = self._read_value(type_id, key)
            if isinstance(value, _UnstoredArray):
                array_lengths[key] = value.length
            else:
                metadata[key] = value
        tensors = [self._read_tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._make_error(f"has an alignment of {alignment!r}, which is not a power of two")
        data_offset = -(-self._position // alignment) * alignment
        self._check_ranges(tensors, data_offset, alignment)
        array_lengths |= {k: len(v) for k, v in metadata.items() if isinstance(v, list)}
        return ModelHeader(
            path=self._name, file_bytes=self._size, version=version, metadata=metadata,
            array_lengths=array_lengths, tensors=tuple(tensors), data_offset=data_offset, value_offsets=value_offsets,
        )  # fmt: skip

    def _read_value(self, type_id: int, key: str) -> Any:
        if type_id in _SCALARS:
            return self._read_scalar(_SCALARS[type_id], key)
        if type_id == _STRING:
            return self._read_string(key, MAX_TEXT_BYTES)
        if type_id != _ARRAY:
            raise self._make_error(f"has a value of unknown type {type_id} for the key {key!r}")
        element_type = self._read_scalar(_U32, key)
        min_bytes = self._min_element_bytes(element_type, key)
        length = self._read_count(f"elements of {key!r}", MAX_HEADER_BYTES, min_bytes=min_bytes)
        if length <= MAX_ARRAY_LENGTH and self._n_stored + length <= MAX_STORED_ELEMENTS:
            self._n_stored += length
            return [self._read_value(element_type, key) for _ in range(length)]
        self._skip_elements(element_type, length, key)
        return _UnstoredArray(length)

    def _min_element_bytes(self, element_type: int, key: str) -> int:
        if element_type in _SCALARS:
            return _SCALARS[element_type].size
        if element_type == _STRING:
            return 8
        raise self._make_error(f"has an array of invalid element type {element_type} for the key {key!r}")

    def _skip_elements(self, element_type: int, length: int, key: str) -> None:
        if element_type in _SCALARS:
            self._fill_window(_SCALARS[element_type].size * length, key)
            self._position += _SCALARS[element_type].size * length
        else:
            self._skip_strings(length, key)

    def _skip_strings(self, length: int, key: str) -> None:
        # Reading a header spends most of its time in this loop, because vocabularies have up to 260,000 strings.
        unpack, remaining = _U64.unpack_from, length
        while remaining:
            window, position = self._window, self._position
            end, n_before = len(window) - 8, remaining
            for remaining in range(n_before, 0, -1):  # noqa: B007  (used after the loop)
                if position > end:
                    break
                position += unpack(window, position)[0] + 8
            else:
                remaining = 0
            if position > self._size:
                raise self._make_error(f"has a string value for the key {key!r} that is longer than the file")
            self._position = position
            if remaining or position > len(window):
                self._fill_window(8 if remaining else 0, key)

    def _read_tensor(self) -> Tensor:
        name = self._read_string("a tensor's name", MAX_KEY_BYTES)
        n_dims = self._read_scalar(_U32, name)
        if not 0 < n_dims <= MAX_DIMS:
            raise self._make_error(f"has {n_dims} dimensions for the tensor {name!r}; valid are 1 to {MAX_DIMS}")
        shape = tuple(self._read_scalar(_U64, name) for _ in range(n_dims))
        type_id = self._read_scalar(_U32, name)
        offset = self._read_scalar(_U64, name)
        if type_id not in TENSOR_TYPES:
            raise self._make_error(f"has the tensor {name!r} of unknown type {type_id}: update edgechat")
        tensor_type = TENSOR_TYPES[type_id]
        n_elements = math.prod(shape)
        if n_elements == 0 or n_elements >= 1 << 62 or shape[0] % tensor_type.block_size:
            dimensions = "x".join(map(str, shape))
            raise self._make_error(f"has the tensor {name!r} of invalid shape {dimensions} for type {tensor_type.name}")
        return Tensor(name, shape, type_id, offset, n_elements // tensor_type.block_size * tensor_type.block_bytes)

    def _check_ranges(self, tensors: list[Tensor], data_offset: int, alignment: int) -> None:
        if len({t.name for t in tensors}) != len(tensors):
            raise self._make_error("has two tensors of the same name")
        end, previous_name = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset % alignment:
                raise self._make_error(
                    f"has the tensor {tensor.name!r} at offset {tensor.offset}, which is not a multiple of {alignment}"
                )
            if tensor.offset < end:
                raise self._make_error(f"has overlapping tensors {previous_name!r} and {tensor.name!r}")
            end, previous_name = tensor.offset + tensor.size_bytes, tensor.name
            if data_offset + end > self._size:
                raise self._make_error(
                    f"ends too early: the tensor {tensor.name!r} ends at byte {data_offset + end}, "
                    f"but the file has {self._size} bytes; download it again"
                )

    def _read_count(self, items: str, limit: int, *, min_bytes: int) -> int:
        count: int = self._read_scalar(_U64, f"the number of {items}")
        if count > limit or count * min_bytes > self._size - self._position:
            raise self._make_error(f"claims {count} {items}, which a file of {self._size} bytes cannot hold")
        return count

    def _read_string(self, field: str, limit: int) -> str:
        length = self._read_scalar(_U64, field)
        if length > min(limit, self._size - self._position):
            raise self._make_error(
                f"claims a string of {length} bytes for {field}, which a file of {self._size} bytes cannot hold"
            )
        return self._read_bytes(length, field).decode("utf-8", "replace")

    def _read_scalar(self, layout: struct.Struct, field: str) -> Any:
        return layout.unpack(self._read_bytes(layout.size, field))[0]

    def _read_bytes(self, n_bytes: int, field: str) -> bytearray:
        self._fill_window(n_bytes, field)
        start, self._position = self._position, self._position + n_bytes
        return self._window[start : self._position]

    def _fill_window(self, n_bytes: int, field: str) -> None:
        """Read until the window contains `n_bytes` bytes after the current position."""
        end = self._position + n_bytes
        if end <= len(self._window):
            return
        if end > self._size:
            raise self._make_error(f"ends too early, in {field} (the file has {self._size} bytes); download it again")
        if end > MAX_HEADER_BYTES:
            raise self._make_error(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB (reading {field})")
        target = min(self._size, max(end, len(self._window) + self._read_ahead_bytes))
        while len(self._window) < end:
            new_data = self._read(target - len(self._window))
            if not new_data:
                raise self._make_error("was truncated while it was read; download it again")
            self._window += new_data

    def _make_error(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._name} {problem}")


class _UnstoredArray:
    """Placeholder for a long array, for which only the length is stored."""

    def __init__(self, length: int) -> None:
        self.length = length
