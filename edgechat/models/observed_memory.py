"""What models were seen to take on this machine beyond what was planned, so that the next plan knows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.files import JsonFile

_MAX_BYTES: Final = 1 << 20
_KEPT_MODELS: Final = 200
_KEPT_LOADS: Final = 5
# More is no inaccuracy of a plan, but something else that is wrong.
_MOST_BYTES: Final = 2 << 30

_Seen = dict[str, list[int]]


def extra_bytes(model_path: str) -> int:
    """The most that this model took beyond its plan in its last loads; 0 if it never did.

    What a short conversation left unused is no reason to plan for less.
    """
    return min(_MOST_BYTES, max([0, *_read().get(_key(model_path), [])]))


def record(model_path: str, planned_bytes: int, peak_bytes: int) -> None:
    """Keep what the engine's process took against what was planned for it."""
    seen = _read()
    key = _key(model_path)
    values = [*seen.pop(key, []), peak_bytes - planned_bytes][-_KEPT_LOADS:]
    seen[key] = values
    _file().save(dict(list(seen.items())[-_KEPT_MODELS:]))


def _key(model_path: str) -> str:
    path = Path(model_path)
    try:
        return f"{path.name} {path.stat().st_size}"
    except OSError:
        return path.name


def _file() -> JsonFile[_Seen]:
    return JsonFile(paths.observed_memory_file(), _Seen, max_bytes=_MAX_BYTES)


def _read() -> _Seen:
    return _file().read() or {}
