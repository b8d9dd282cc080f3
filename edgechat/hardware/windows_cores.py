"""Count the physical cores on Windows by efficiency class, which distinguishes fast from slow cores."""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from typing import Any, Final

# RelationProcessorCore of LOGICAL_PROCESSOR_RELATIONSHIP (winnt.h).
_RELATION_CORE: Final = 0
# Beginning of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX: relationship, size, and the fields Flags and EfficiencyClass of
# its PROCESSOR_RELATIONSHIP.
_HEADER: Final = struct.Struct("<IIBB")


def count_cores_by_efficiency_class() -> tuple[int, ...]:
    """Return the number of physical cores by class, fastest class first; empty if Windows does not report them."""
    read: Any = getattr(ctypes, "windll").kernel32.GetLogicalProcessorInformationEx  # noqa: B009  (Windows only)
    size = ctypes.c_ulong()
    read(_RELATION_CORE, None, ctypes.byref(size))  # fails, and returns the size
    buffer = ctypes.create_string_buffer(size.value)
    return parse_cores(buffer.raw) if read(_RELATION_CORE, buffer, ctypes.byref(size)) else ()


def parse_cores(records: bytes) -> tuple[int, ...]:
    """Count the cores in the result of GetLogicalProcessorInformationEx by class, fastest class first.

    A core with a higher efficiency class is faster and uses more energy.
    """
    n_cores: Counter[int] = Counter()
    offset = 0
    while offset + _HEADER.size <= len(records):
        relationship, size, _flags, efficiency_class = _HEADER.unpack_from(records, offset)
        if size < _HEADER.size:
            return ()
        n_cores[efficiency_class] += relationship == _RELATION_CORE
        offset += size
    return tuple(n_cores[n] for n in sorted(n_cores, reverse=True) if n_cores[n])
