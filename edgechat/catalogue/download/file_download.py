"""Getting a file over HTTP: in parts, resumed after anything, hashed while it arrives, under its name only when whole."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from edgechat.catalogue.download import http
from edgechat.catalogue.download.hashing import sha256
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
from edgechat.modelfile.gguf import read_gguf_header


def download_file(
    request: DownloadRequest,
    on_progress: ProgressCallback = lambda progress: None,
    cancel: threading.Event | None = None,
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
) -> Path:
    """Get a file, unless it is there; returns where it is.

    Two processes that want the same file get it once. Raises DownloadError (no room, wrong hash, cancelled) and
    HubError (refused, unreachable); what arrived until then is used the next time.
    """
    import filelock

    cancel = cancel or threading.Event()
    path = request.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(path.name + ".part.lock"))
        while True:
            try:
                lock.acquire(timeout=0.5)
                break
            except filelock.Timeout:
                on_progress(_progress(request, "waiting"))
                check_cancelled(cancel)
        try:
            if not _is_there(request):
                _get_twice(request, on_progress, cancel, retry_policy)
            # Whoever waits for it finds the file whole.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
        finally:
            lock.release()
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _is_there(wanted: DownloadRequest) -> bool:
    try:
        size = wanted.path.stat().st_size
    except FileNotFoundError:
        return False
    if wanted.size_bytes not in {None, size}:
        return False
    return not wanted.sha256 or sha256(wanted.path) == wanted.sha256


def _get_twice(wanted: DownloadRequest, tell: ProgressCallback, cancel: threading.Event, patience: RetryPolicy) -> None:
    """A wrong hash may come of what was kept from another time: then once more, from the start."""
    for is_last in (False, True):
        fetch = Transfer(wanted, tell, cancel, patience)
        found = fetch.run()
        if not wanted.sha256 or found == wanted.sha256:
            if not wanted.sha256:
                _check_whole(wanted, fetch.part)
            fetch.part.finish()
            return
        fetch.part.discard()
        if is_last or not fetch.part.resumed_bytes:
            raise DownloadError(
                f"{wanted.path.name} arrived with the hash {found}, but should have {wanted.sha256}: it is damaged, or not "
                "what it says, and was thrown away; try again later, or another source"
            )


def _check_whole(wanted: DownloadRequest, part: PartialFile) -> None:
    """Without a hash, at least the model's own header must say that all of it is there. Raises DownloadError."""
    if wanted.path.suffix.lower() != ".gguf":
        return
    try:
        read_gguf_header(part.data_path)
    except ModelFileError as error:
        part.discard()
        raise DownloadError(
            f"what {http.redact_url(wanted.url)} sent is no whole model, and was thrown away: {error}"
        ) from None


def _progress(wanted: DownloadRequest, state: str) -> DownloadProgress:
    return DownloadProgress(
        name=wanted.path.name, done_bytes=0, total_bytes=wanted.size_bytes, resumed_bytes=0, bytes_per_s=0.0, remaining_s=None,
        state=state,
    )  # fmt: skip
