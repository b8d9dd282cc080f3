"""The hash of a file, while it arrives or afterwards."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgechat.catalogue.download.partial_file import PartialFile

_CHUNK_BYTES: Final = 1 << 20
_REST_S: Final = 0.05
# What arrives faster than the disk takes it would otherwise be waited for at the end, all of it.
_FLUSH_BYTES: Final = 32 << 20


class PartHasher:
    """Follows the front of a part in a thread of its own, so that the hash is there when the last byte is."""

    def __init__(self, part: PartialFile) -> None:
        self._part = part
        self._hash = hashlib.sha256()
        self._at = 0
        self._more = threading.Event()
        self._is_ended = False
        self._is_aborted = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be more."""
        self._more.set()

    def _run(self) -> None:
        flushed = 0
        try:
            while True:
                front = self._part.contiguous_bytes
                while self._at < front and not self._is_aborted:
                    data = self._part.read(self._at, min(_CHUNK_BYTES, front - self._at))
                    if not data:
                        raise OSError(f"{self._part.data_path} became shorter")  # noqa: TRY301  (kept for the caller)
                    self._hash.update(data)
                    self._at += len(data)
                    if self._at - flushed >= _FLUSH_BYTES:
                        flushed = self._at
                        self._part.flush()
                if self._is_aborted or (self._is_ended and self._at >= self._part.contiguous_bytes):
                    return
                self._more.wait(_REST_S)
                self._more.clear()
        except OSError as error:
            self._failure = error

    def result(self, wait_s: float) -> str | None:
        """The hash of all that arrived without a gap; None if that takes longer. Nothing must arrive any more.

        Raises OSError.
        """
        self._is_ended = True
        self._more.set()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            return None
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Leave it, at the next piece."""
        self._is_aborted = True
        self._more.set()
        self._thread.join()


def sha256(path: Path, tell: Callable[[int], None] = lambda done_bytes: None) -> str:
    """The hash of a file; `tell` hears how far it is. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tell(done)
    return digest.hexdigest()
