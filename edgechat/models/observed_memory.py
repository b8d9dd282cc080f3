"""Observed memory: difference between peak and planned memory in the last loads of each model, for later plans."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.files import JsonFile

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_MODELS: Final = 200
_MAX_LOADS: Final = 5
# Maximum difference that is added to a plan; a larger one has another cause than an inaccurate plan.
_MAX_EXTRA_BYTES: Final = 2 << 30

_Differences = dict[str, list[int]]


def extra_bytes(model_path: str) -> int:
    """Return the largest excess over the planned memory in the last loads of a model, in bytes; 0 without excess."""
    return min(_MAX_EXTRA_BYTES, max([0, *_read().get(_key(model_path), [])]))


def record(model_path: str, planned_bytes: int, peak_bytes: int) -> None:
    """Save the difference between the planned memory and the peak of the engine process."""
    differences = _read()
    key = _key(model_path)
    differences[key] = [*differences.pop(key, []), peak_bytes - planned_bytes][-_MAX_LOADS:]
    _file().save(dict(list(differences.items())[-_MAX_MODELS:]))


def _key(model_path: str) -> str:
    path = Path(model_path)
    try:
        return f"{path.name} {path.stat().st_size}"
    except OSError:
        return path.name


def _file() -> JsonFile[_Differences]:
    return JsonFile(paths.observed_memory_file(), _Differences, max_bytes=_MAX_FILE_BYTES)


def _read() -> _Differences:
    return _file().read() or {}
