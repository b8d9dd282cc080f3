"""Reads the header of a GGUF file without trusting it.

Every count and length is compared with what the file can hold before anything of that size is made, so a
hostile header costs neither memory nor time. Format: ggml/include/gguf.h of llama.cpp.
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
"""The largest known take about 16 MiB."""
MAX_TEXT_BYTES: Final = 4 << 20
"""Of one value; chat templates take some 20 kB."""
MAX_TENSORS: Final = 1 << 17
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 1 << 16
MAX_KEPT_ELEMENTS: Final = 4096
"""Arrays up to this length are kept (one value per layer); longer ones are vocabularies."""
MAX_KEPT_IN_ALL: Final = 1 << 18
"""Elements of all arrays that are kept: a bound on memory, far above one value per layer for each key."""
MAX_DIMS: Final = 4

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]


# How much is read ahead: of a file of this machine, and over a network.
_AHEAD_BYTES: Final = 1 << 20
_REMOTE_AHEAD_BYTES: Final = 64 << 10


def read_gguf_header(path: Path) -> ModelHeader:
    """The checked header of the one GGUF file at `path`, which may be a part of a set.

    Raises ModelFileError, naming the file and what is wrong with it.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory: name a .gguf file in it")
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Walk(str(path), file.read, size, _AHEAD_BYTES).header()
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def read_gguf_stream(name: str, read: Callable[[int], bytes], size: int) -> ModelHeader:
    """The same of a file of `size` bytes that comes from elsewhere: `read(n)` returns its next n bytes, or fewer.

    Reads little more than the header. Raises ModelFileError, and what `read` raises.
    """
    return _Walk(name, read, size, _REMOTE_AHEAD_BYTES).header()


class _Walk:
    """One pass over a header, with a window on the file that grows as needed."""

    def __init__(self, name: str, read: Callable[[int], bytes], size: int, ahead: int) -> None:
        self._name = name
        self._read = read
        self._size = size
        self._ahead = ahead
        self._window = bytearray()
        self._at = 0
        self._kept = 0

    def header(self) -> ModelHeader:
        if self._size == 0:
            raise self._wrong("is empty")
        if self._take(4, "its first bytes") != MAGIC:
            raise self._wrong("is not a GGUF file (it does not start with GGUF)")
        version = self._scalar(_U32, "its version")
        if version not in VERSIONS:
            raise self._wrong(f"has GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read")
        n_tensors = self._count("tensors", MAX_TENSORS, least_bytes=24)
        n_keys = self._count("metadata entries", MAX_KEYS, least_bytes=13)
        metadata: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_keys):
            key = self._string("a metadata key", MAX_KEY_BYTES)
            if key in metadata or key in lengths:
                raise self._wrong(f"has the metadata key {key!r} twice")
            value = self._value(self._scalar(_U32, key), key)
            if isinstance(value, _Long):
                lengths[key] = value.length
            else:
                metadata[key] = value
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._wrong(f"has an alignment of {alignment!r}, which is not a power of two")
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
            raise self._wrong(f"has a value of unknown type {kind} under {key!r}")
        element = self._scalar(_U32, key)
        length = self._count(f"elements of {key!r}", MAX_HEADER_BYTES, least_bytes=self._least_bytes(element, key))
        if length <= MAX_KEPT_ELEMENTS and self._kept + length <= MAX_KEPT_IN_ALL:
            self._kept += length
            return [self._value(element, key) for _ in range(length)]
        self._skip_elements(element, length, key)
        return _Long(length)

    def _least_bytes(self, element: int, key: str) -> int:
        if element in _SCALARS:
            return _SCALARS[element].size
        if element == _STRING:
            return 8
        raise self._wrong(f"has elements of an impossible type {element} under {key!r}")

    def _skip_elements(self, element: int, length: int, key: str) -> None:
        if element in _SCALARS:
            self._need(_SCALARS[element].size * length, key)
            self._at += _SCALARS[element].size * length
        else:
            self._skip_strings(length, key)

    def _skip_strings(self, length: int, key: str) -> None:
        # Vocabularies have up to 260,000 strings: this loop is most of the time that reading a header takes.
        unpack, remaining = _U64.unpack_from, length
        while remaining:
            window, at = self._window, self._at
            end, before = len(window) - 8, remaining
            for remaining in range(before, 0, -1):  # noqa: B007  (how many are left, also after a break)
                if at > end:
                    break
                at += unpack(window, at)[0] + 8
            else:
                remaining = 0
            if at > self._size:
                raise self._wrong(f"has a string that is longer than the whole file under {key!r}")
            self._at = at
            if remaining or at > len(window):
                self._need(8 if remaining else 0, key)

    def _tensor(self) -> Tensor:
        name = self._string("a tensor's name", MAX_KEY_BYTES)
        n_dims = self._scalar(_U32, name)
        if not 0 < n_dims <= MAX_DIMS:
            raise self._wrong(f"has {n_dims} dimensions for the tensor {name!r}; 1 to {MAX_DIMS} are possible")
        shape = tuple(self._scalar(_U64, name) for _ in range(n_dims))
        type_id = self._scalar(_U32, name)
        offset = self._scalar(_U64, name)
        if type_id not in TENSOR_TYPES:
            raise self._wrong(f"has the tensor {name!r} in the unknown type {type_id}: a newer edgechat may read it")
        kind = TENSOR_TYPES[type_id]
        count = math.prod(shape)
        if count == 0 or count >= 1 << 62 or shape[0] % kind.block_size:
            raise self._wrong(
                f"has the tensor {name!r} in the impossible shape {'x'.join(map(str, shape))} of {kind.name}"
            )
        return Tensor(name, shape, type_id, offset, count // kind.block_size * kind.block_bytes)

    def _check_ranges(self, tensors: list[Tensor], data_offset: int, alignment: int) -> None:
        if len({t.name for t in tensors}) != len(tensors):
            raise self._wrong("has two tensors with one name")
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset % alignment:
                raise self._wrong(f"has the tensor {tensor.name!r} at {tensor.offset}, not a multiple of {alignment}")
            if tensor.offset < end:
                raise self._wrong(f"has the tensors {before!r} and {tensor.name!r} in the same place")
            end, before = tensor.offset + tensor.size_bytes, tensor.name
            if data_offset + end > self._size:
                raise self._wrong(
                    f"ends too early: the tensor {tensor.name!r} reaches to byte {data_offset + end}, "
                    f"but the file has {self._size}; download it again"
                )

    def _count(self, what: str, limit: int, *, least_bytes: int) -> int:
        count: int = self._scalar(_U64, f"the number of {what}")
        if count > limit or count * least_bytes > self._size - self._at:
            raise self._wrong(f"claims {count} {what}, which it cannot hold ({self._size} bytes)")
        return count

    def _string(self, what: str, limit: int) -> str:
        length = self._scalar(_U64, what)
        if length > min(limit, self._size - self._at):
            raise self._wrong(f"claims a text of {length} bytes for {what}, which it cannot hold ({self._size} bytes)")
        return self._take(length, what).decode("utf-8", "replace")

    def _scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack(self._take(form.size, what))[0]

    def _take(self, count: int, what: str) -> bytearray:
        self._need(count, what)
        start, self._at = self._at, self._at + count
        return self._window[start : self._at]

    def _need(self, count: int, what: str) -> None:
        """Have `count` bytes from the current position in the window."""
        end = self._at + count
        if end <= len(self._window):
            return
        if end > self._size:
            raise self._wrong(f"ends too early, in {what} (it has {self._size} bytes); download it again")
        if end > MAX_HEADER_BYTES:
            raise self._wrong(f"has a header of more than {MAX_HEADER_BYTES >> 20} MiB, at {what}")
        target = min(self._size, max(end, len(self._window) + self._ahead))
        while len(self._window) < end:
            more = self._read(target - len(self._window))
            if not more:
                raise self._wrong("became shorter while it was read")
            self._window += more

    def _wrong(self, words: str) -> ModelFileError:
        return ModelFileError(f"{self._name} {words}")


class _Long:
    """Stands for an array that is not kept."""

    def __init__(self, length: int) -> None:
        self.length = length
