"""GGUF files as values that tests can change, also in ways that the gguf package refuses to write."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from edgechat.modelfile.tensor_types import TENSOR_TYPES

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""Type numbers of metadata values."""
_LAYOUTS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class RawTensor(NamedTuple):
    """One tensor; `data` may have any size."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    data: bytes


class RawGguf:
    """Metadata values as (type, value), where an array is (element type, list), and tensors."""

    def __init__(self, metadata: dict[str, tuple[int, Any]], tensors: list[RawTensor]) -> None:
        self.metadata = metadata
        self.tensors = tensors

    @classmethod
    def read(cls, path: Path) -> RawGguf:
        reader = _Reader(path.read_bytes())
        reader.scalar("<Q")  # magic and version
        n_tensors, n_keys = reader.scalar("<Q"), reader.scalar("<Q")
        metadata = {}
        for _ in range(n_keys):
            key = reader.string().decode()
            type_id = reader.scalar("<I")
            metadata[key] = (type_id, reader.value(type_id))
        entries = []
        for _ in range(n_tensors):
            name = reader.string().decode()
            shape = tuple(reader.scalar("<Q") for _ in range(reader.scalar("<I")))
            entries.append((name, shape, reader.scalar("<I"), reader.scalar("<Q")))
        start = -(-reader.position // 32) * 32
        return cls(
            metadata,
            [RawTensor(n, s, t, reader.data[start + o : start + o + tensor_bytes(s, t)]) for n, s, t, o in entries],
        )

    def copy(self) -> RawGguf:
        return RawGguf(dict(self.metadata), list(self.tensors))

    def with_value(self, key: str, type_id: int, value: Any) -> RawGguf:
        """Return a copy with another value, where ARCH in the key stands for the architecture."""
        changed = self.copy()
        changed.metadata[key.replace("ARCH", self.metadata["general.architecture"][1].decode())] = (type_id, value)
        return changed

    def with_type(self, name: str, type_id: int) -> RawGguf:
        """Return a copy in which the weights of a tensor are zeros of another type."""
        changed = self.copy()
        for i, tensor in enumerate(self.tensors):
            if tensor.name == name:
                changed.tensors[i] = RawTensor(name, tensor.shape, type_id, bytes(tensor_bytes(tensor.shape, type_id)))
        return changed

    def write(self, path: Path) -> Path:
        alignment = self.metadata.get("general.alignment", (U32, 32))[1]
        if not isinstance(alignment, int) or alignment <= 0 or alignment > 1 << 20:
            alignment = 32  # the file is refused for its value
        head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)))
        for key, (type_id, value) in self.metadata.items():
            head += _encode(STRING, key.encode()) + struct.pack("<I", type_id) + _encode(type_id, value)
        body = bytearray()
        for tensor in self.tensors:
            head += _encode(STRING, tensor.name.encode()) + struct.pack("<I", len(tensor.shape))
            head += b"".join(struct.pack("<Q", n) for n in tensor.shape)
            head += struct.pack("<IQ", tensor.type_id, len(body))
            body += tensor.data + bytes(-len(tensor.data) % alignment)
        path.write_bytes(head + bytes(-len(head) % alignment) + body)
        return path


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def scalar(self, layout: str) -> Any:
        value = struct.unpack_from(layout, self.data, self.position)[0]
        self.position += struct.calcsize(layout)
        return value

    def string(self) -> bytes:
        length: int = self.scalar("<Q")
        self.position += length
        return self.data[self.position - length : self.position]

    def value(self, type_id: int) -> Any:
        if type_id == STRING:
            return self.string()
        if type_id == ARRAY:
            element_type = self.scalar("<I")
            return element_type, [self.value(element_type) for _ in range(self.scalar("<Q"))]
        return self.scalar(_LAYOUTS[type_id])


def tensor_bytes(shape: tuple[int, ...], type_id: int) -> int:
    kind = TENSOR_TYPES[type_id]
    return math.prod(shape) // kind.block_size * kind.block_bytes


def _encode(type_id: int, value: Any) -> bytes:
    if type_id == STRING:
        return struct.pack("<Q", len(value)) + bytes(value)
    if type_id == ARRAY:
        element_type, elements = value
        return struct.pack("<IQ", element_type, len(elements)) + b"".join(_encode(element_type, e) for e in elements)
    return struct.pack(_LAYOUTS[type_id], value)
