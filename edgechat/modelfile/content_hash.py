"""Which weights a file holds: its hash, computed once and remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.files import JsonFile

_CHUNK_BYTES: Final = 1 << 20
_REMEMBERED: Final = 200
# Two hundred entries take about 50 kB.
_MAX_BYTES: Final = 1 << 20


class _Known(msgspec.Struct, frozen=True):
    size_bytes: int
    mtime_ns: int
    inode: int
    sha256: str


def known_hash(model: Path, memo: Path) -> str | None:
    """The hash of this very file, if it is known; no byte of it is read."""
    known = _read(memo).get(str(model))
    if known is None or (known.size_bytes, known.mtime_ns, known.inode) != _stamp(model):
        return None
    return known.sha256


def file_hash(model: Path, memo: Path, pause: Callable[[], None]) -> str:
    """SHA-256 of the file, in hexadecimal; computed if it is not known yet, and then remembered in `memo`.

    `pause` is called for every MiB, and may wait. Raises OSError if the file cannot be read.
    """
    found = known_hash(model, memo)
    if found is not None:
        return found
    stamp = _stamp(model)
    digest = hashlib.sha256()
    with model.open("rb", buffering=0) as file:
        while part := file.read(_CHUNK_BYTES):
            pause()
            digest.update(part)
    found = digest.hexdigest()
    if stamp is not None and stamp == _stamp(model):
        known = _read(memo)
        known.pop(str(model), None)
        known[str(model)] = _Known(*stamp, found)
        _file(memo).save(dict(list(known.items())[-_REMEMBERED:]))
    return found


def _stamp(model: Path) -> tuple[int, int, int] | None:
    try:
        status = model.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _file(memo: Path) -> JsonFile[dict[str, _Known]]:
    return JsonFile(memo, dict[str, _Known], max_bytes=_MAX_BYTES)


def _read(memo: Path) -> dict[str, _Known]:
    return _file(memo).read() or {}
