"""Removal of mapped pages of model files whose weights llama.cpp has copied, so that weights are in memory once."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edgechat.planner.mapped_file import FileRange

# Linux's values of these constants. Python's `mmap` module has the first one on Linux only.
_MADV_DONTNEED: Final = 4
_MADV_NOHUGEPAGE: Final = 15
# Pages are removed again after this number of loaded bytes or this part of the files, whichever is more, because a
# removal takes a millisecond or two.
_MIN_STEP_BYTES: Final = 16 << 20
_STEP_DIVISOR: Final = 64
# A line of /proc/self/maps: start, end, permissions, offset in the file, inode.
_MAPPING_PATTERN: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r--s ([0-9a-f]+) \S+ (\d+) ")


class MappedPages:
    """Pages of mapped model files that a loaded model does not need; `remove` takes them out of this process.

    llama.cpp maps a file with all its pages and then copies the tensors for which faster kernels need another layout.
    Without `remove`, both copies stay in the memory of the process. Removed pages stay in the page cache, which the
    system can reclaim, and return to the process when they are read again. Has no effect on systems other than Linux.
    """

    def __init__(self, files: Sequence[Path], unused_ranges: Sequence[FileRange]) -> None:
        """`files` are the files of the model in order; `unused_ranges` are the ranges whose pages are removed."""
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        """Ranges of bytes in a file by the file's inode number."""
        self._total_bytes = self._next_removal_bytes = 0
        if sys.platform != "linux" or not unused_ranges:
            return
        for index, file in enumerate(files):
            with contextlib.suppress(OSError):
                stat = file.stat()
                self._total_bytes += stat.st_size
                self._ranges[stat.st_ino] = [(r.start, r.end) for r in unused_ranges if r.part_index == index]
        self._madvise = ctypes.CDLL(None).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def remove_loaded(self, fraction: float) -> None:
        """Call `remove` at the start of a load and after each step; `fraction` is the loaded part of the files."""
        loaded_bytes = int(fraction * self._total_bytes)
        if self._ranges and loaded_bytes >= self._next_removal_bytes:
            self._next_removal_bytes = loaded_bytes + max(_MIN_STEP_BYTES, self._total_bytes // _STEP_DIVISOR)
            self.remove()

    def remove(self) -> None:
        """Remove the pages of the unused ranges from this process.

        Only whole pages of shared, read-only mappings of the model files are removed, so no data is lost.
        """
        if not self._ranges:
            return
        for address, end_address, offset, inode in _list_shared_mappings():
            for start, end in self._ranges.get(inode, ()):
                first = _round_up(max(address, address + start - offset))
                last = min(end_address, address + end - offset) // mmap.PAGESIZE * mmap.PAGESIZE
                if first < last:
                    # Without huge pages, reading the next tensor does not map up to 2 MiB of this tensor again.
                    self._madvise(first, last - first, _MADV_NOHUGEPAGE)
                    self._madvise(first, last - first, _MADV_DONTNEED)


def _round_up(address: int) -> int:
    return -(-address // mmap.PAGESIZE) * mmap.PAGESIZE


def _list_shared_mappings() -> Iterator[tuple[int, int, int, int]]:
    """Yield start address, end address, offset in the file and inode number of shared read-only mappings."""
    with contextlib.suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
        lines = maps.readlines()  # all lines at once, because `remove` changes the list of mappings
        for line in lines:
            match = _MAPPING_PATTERN.match(line)
            if match is not None and match[4] != "0":
                yield int(match[1], 16), int(match[2], 16), int(match[3], 16), int(match[4])
