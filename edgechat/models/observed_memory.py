"""Saved differences between the peak and planned memory of each model's last loads, which correct later plans."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.files import JsonFile

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_MODELS: Final = 200
_MAX_LOADS: Final = 5
# Maximum number of bytes added to a memory estimate. A larger difference has other causes than an inaccurate estimate.
_MAX_EXTRA_BYTES: Final = 2 << 30

_Differences = dict[str, list[int]]
"""Peak minus planned memory in bytes for each model key, oldest load first."""


def extra_bytes(model_path: str) -> int:
    """Return the largest excess over the planned memory among the model's recent loads, in bytes; 0 without excess."""
    return min(_MAX_EXTRA_BYTES, max([0, *_read_differences().get(_make_model_key(model_path), [])]))


def record(model_path: str, planned_bytes: int, peak_bytes: int) -> None:
    """Save the difference between a model's planned memory and the peak memory of its engine process."""
    differences = _read_differences()
    key = _make_model_key(model_path)
    differences[key] = [*differences.pop(key, []), peak_bytes - planned_bytes][-_MAX_LOADS:]
    _differences_file().save(dict(list(differences.items())[-_MAX_MODELS:]))


def _make_model_key(model_path: str) -> str:
    path = Path(model_path)
    try:
        return f"{path.name} {path.stat().st_size}"
    except OSError:
        return path.name


def _differences_file() -> JsonFile[_Differences]:
    return JsonFile(paths.observed_memory_file(), _Differences, max_bytes=_MAX_FILE_BYTES)


def _read_differences() -> _Differences:
    return _differences_file().read() or {}
