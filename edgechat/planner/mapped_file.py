"""Parts of mapped model files that a loaded model does not need in memory."""

from __future__ import annotations

import msgspec

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.memory import REPACKED_TYPES, LoadOptions, find_unused_tensors


class FileRange(msgspec.Struct, frozen=True, array_like=True):
    """Range of bytes in one file of a model."""

    part_index: int
    """Index of the file in a split model, from 0."""
    start: int
    end: int


def list_unused_ranges(
    profile: ModelProfile, options: LoadOptions, repacked_types: frozenset[str] = REPACKED_TYPES
) -> tuple[FileRange, ...]:
    """Return the file ranges of the tensors that `find_unused_tensors` returns, in order; merge adjacent ranges.

    The result is empty if the positions of the tensors are unknown.
    """
    if not profile.data_offsets:
        return ()
    ranges: list[FileRange] = []
    tensors = find_unused_tensors(profile, options, repacked_types)
    for tensor in sorted(tensors, key=lambda t: (t.part_index, t.offset)):
        start = profile.data_offsets[tensor.part_index] + tensor.offset
        added = FileRange(tensor.part_index, start, start + tensor.size_bytes)
        if ranges and (ranges[-1].part_index, ranges[-1].end) == (added.part_index, added.start):
            added = FileRange(added.part_index, ranges.pop().start, added.end)
        ranges.append(added)
    return tuple(ranges)
