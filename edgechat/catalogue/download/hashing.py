"""SHA-256 of a file, computed during its download."""

from __future__ import annotations

import hashlib
import threading
from typing import Final

from edgechat.catalogue.download.partial_file import PartialFile

_CHUNK_BYTES: Final = 1 << 20
_POLL_S: Final = 0.05
# Data is synced to disk after this number of hashed bytes. If it were synced only at the end, a download over a network
# that is faster than the disk would have to wait until all data is written.
_FLUSH_BYTES: Final = 32 << 20


class PartHasher:
    """Thread that hashes a partial file up to its first gap, so that the hash is ready soon after the last byte."""

    def __init__(self, part: PartialFile) -> None:
        self._part = part
        self._hash = hashlib.sha256()
        self._position = 0
        self._wake = threading.Event()
        self._is_complete = False
        self._is_aborted = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Notify the thread that further bytes may have arrived."""
        self._wake.set()

    def _run(self) -> None:
        flushed_position = 0
        try:
            while True:
                end = self._part.contiguous_bytes
                while self._position < end and not self._is_aborted:
                    data = self._part.read(self._position, min(_CHUNK_BYTES, end - self._position))
                    if not data:
                        raise OSError(f"{self._part.data_path} was truncated during the download")  # noqa: TRY301  (raised in `result`)
                    self._hash.update(data)
                    self._position += len(data)
                    if self._position - flushed_position >= _FLUSH_BYTES:
                        flushed_position = self._position
                        self._part.flush()
                if self._is_aborted or (self._is_complete and self._position >= self._part.contiguous_bytes):
                    return
                self._wake.wait(_POLL_S)
                self._wake.clear()
        except OSError as error:
            self._failure = error

    def result(self, timeout_s: float) -> str | None:
        """Return the SHA-256 of the file, or None if it is not ready after `timeout_s`.

        Call this method only after the last byte was written. Raises OSError.
        """
        self._is_complete = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Stop the thread after the current chunk, and wait until it has ended."""
        self._is_aborted = True
        self._wake.set()
        self._thread.join()
