"""Saved differences between the peak and planned memory of each model's last loads, which correct later plans."""

from __future__ import annotations

from typing import Final

from edgechat import paths
from edgechat.files import JsonFile, make_file_key

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_MODELS: Final = 200
_MAX_LOADS: Final = 5
# Maximum recorded difference. A larger difference must have another cause than an inaccurate estimate.
_MAX_EXTRA_BYTES: Final = 2 << 30
# Increase of the estimate after the system killed an engine because of its memory use: 1/8 of the planned memory, but
# at least 32 MiB. If a plan is killed repeatedly, it no longer fits after a few attempts, and a smaller plan is made.
_KILL_DIVISOR: Final = 8
_MIN_KILL_BYTES: Final = 32 << 20

_Differences = dict[str, list[int]]
"""Peak minus planned memory in bytes for each model key, oldest load first."""


def extra_bytes(model_path: str) -> int:
    """Return the largest excess over the planned memory among the model's recent loads, in bytes; 0 without excess."""
    return max([0, *_read_differences().get(make_file_key(model_path), [])])


def record(model_path: str, planned_bytes: int, peak_bytes: int) -> None:
    """Save the difference between a model's planned memory and the peak memory of its engine process."""
    _add_difference(model_path, min(_MAX_EXTRA_BYTES, peak_bytes - planned_bytes))


def record_kill(model_path: str, planned_bytes: int) -> None:
    """Increase the next estimates for a model, because the system killed its engine, which used too much memory.

    `planned_bytes` includes the additional memory of earlier records.
    """
    increase = max(_MIN_KILL_BYTES, planned_bytes // _KILL_DIVISOR)
    _add_difference(model_path, extra_bytes(model_path) + increase)


def _add_difference(model_path: str, difference: int) -> None:
    differences = _read_differences()
    key = make_file_key(model_path)
    differences[key] = [*differences.pop(key, []), difference][-_MAX_LOADS:]
    _differences_file().save(dict(list(differences.items())[-_MAX_MODELS:]))


def _differences_file() -> JsonFile[_Differences]:
    return JsonFile(paths.observed_memory_file(), _Differences, max_bytes=_MAX_FILE_BYTES)


def _read_differences() -> _Differences:
    return _differences_file().read() or {}
