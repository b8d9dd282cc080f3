"""Download of one file: lock against other processes, transfer, hash check, and renaming of the complete file."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from edgechat.catalogue.download import http
from edgechat.catalogue.download.partial_file import PartialFile
from edgechat.catalogue.download.request import (
    DownloadProgress,
    DownloadRequest,
    ProgressCallback,
    RetryPolicy,
    check_cancelled,
)
from edgechat.catalogue.download.transfer import Transfer
from edgechat.errors import DownloadError, ModelFileError
from edgechat.modelfile.content_hash import hash_file
from edgechat.modelfile.gguf import read_gguf_header

_LOCK_POLL_S = 0.5


def download_file(
    request: DownloadRequest,
    on_progress: ProgressCallback = lambda progress: None,
    cancel: threading.Event | None = None,
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
) -> Path:
    """Download a file unless it exists already, and return its path.

    If several processes need the same file, one process downloads it and the others wait. After a failure, the next
    call resumes from the received bytes. Raises DownloadError (disk full, wrong hash, cancelled) and HubError (request
    refused, server not reachable).
    """
    import filelock

    cancel = cancel or threading.Event()
    path = request.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(path.name + ".part.lock"))
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                break
            except filelock.Timeout:
                on_progress(_make_waiting_progress(request))
                check_cancelled(cancel)
        try:
            if not _is_downloaded(request):
                _transfer(request, on_progress, cancel, retry_policy)
            # The lock file can be deleted before the lock is released: waiting processes then find the complete file.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
        finally:
            lock.release()
    except OSError as error:
        raise DownloadError(f"Cannot write {path}: {error.strerror or error}") from error
    return path


def _is_downloaded(request: DownloadRequest) -> bool:
    try:
        size_bytes = request.path.stat().st_size
    except FileNotFoundError:
        return False
    if request.size_bytes not in {None, size_bytes}:
        return False
    return not request.sha256 or hash_file(request.path) == request.sha256


def _transfer(
    request: DownloadRequest, on_progress: ProgressCallback, cancel: threading.Event, retry_policy: RetryPolicy
) -> None:
    """Transfer the file and check its hash. If a resumed download has a wrong hash, transfer all bytes once more."""
    for is_last_attempt in (False, True):
        transfer = Transfer(request, on_progress, cancel, retry_policy)
        sha256 = transfer.run()
        if not request.sha256 or sha256 == request.sha256:
            if not request.sha256:
                _check_completeness(request, transfer.part)
            transfer.part.finish()
            return
        transfer.part.discard()
        if is_last_attempt or not transfer.part.resumed_bytes:
            raise DownloadError(
                f"{request.path.name} has the hash {sha256}, expected {request.sha256}. The damaged file was "
                "deleted. Try again later, or use another source."
            )


def _check_completeness(request: DownloadRequest, part: PartialFile) -> None:
    """Raise DownloadError if a model file without expected hash is incomplete according to its header."""
    if request.path.suffix.lower() != ".gguf":
        return
    try:
        read_gguf_header(part.data_path)
    except ModelFileError as error:
        part.discard()
        raise DownloadError(
            f"The file from {http.redact_url(request.url)} is not a complete model file and was deleted: {error}"
        ) from None


def _make_waiting_progress(request: DownloadRequest) -> DownloadProgress:
    return DownloadProgress(
        name=request.path.name, done_bytes=0, total_bytes=request.size_bytes, resumed_bytes=0, bytes_per_s=0.0,
        remaining_s=None, state="waiting",
    )  # fmt: skip
