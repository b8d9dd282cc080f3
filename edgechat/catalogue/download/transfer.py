"""Transfer of a file over parallel connections that write to one partial file."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import Final

from edgechat.catalogue.download import http
from edgechat.catalogue.download.hashing import PartHasher
from edgechat.catalogue.download.partial_file import FileVersion, PartialFile
from edgechat.catalogue.download.request import (
    DownloadProgress,
    DownloadRequest,
    ProgressCallback,
    RetryPolicy,
    check_cancelled,
    check_disk_space,
)
from edgechat.errors import DownloadError, EdgechatError, HubError
from edgechat.humanize import format_size

_READ_BYTES: Final = 512 << 10
# Minimum size of the range that an additional connection downloads.
_MIN_RANGE_BYTES: Final = 8 << 20
# End offset of the range of a file whose size is unknown.
_UNKNOWN_END: Final = 1 << 62
_POLL_S: Final = 0.1
# Period in seconds over which the displayed speed is averaged.
_SPEED_WINDOW_S: Final = 5.0
_PARTIAL_CONTENT: Final = 206


class _Range:
    """Bytes from `position` to `end` that one connection still has to transfer. An idle connection may take half."""

    def __init__(self, position: int, end: int) -> None:
        self.position = position
        self.end = end


class Transfer:
    """Transfer of one file by connection threads that write to `part`, with a monitor loop in `run`."""

    def __init__(
        self,
        request: DownloadRequest,
        on_progress: ProgressCallback,
        cancel: threading.Event,
        retry_policy: RetryPolicy,
    ) -> None:
        """Open the partial file. If the size or the version of the file is unknown, request it from the server first.

        Raises HubError, DownloadCancelled and OSError.
        """
        self._request = request
        self._on_progress = on_progress
        self._cancel = cancel
        self._retry_policy = retry_policy
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._size_bytes = request.size_bytes
        self._validator = ""
        self._is_ranged = False
        self._was_reached = False
        self._first_response: http.Response | None = None
        if self._size_bytes is None or not request.sha256:
            self._first_response = response = self._open_first_response()
            self._size_bytes = response.size_bytes if self._size_bytes is None else self._size_bytes
            self._validator = "" if request.sha256 else response.validator
        self.part = PartialFile(request.path, FileVersion(self._size_bytes, request.sha256 or self._validator))
        self._failure: BaseException | None = None
        spans = self.part.missing_ranges(self._size_bytes) if self._size_bytes is not None else [(0, _UNKNOWN_END)]
        self._pending = [_Range(*span) for span in spans]
        self._active: list[_Range] = []
        self._threads: list[threading.Thread] = []
        self._may_grow = True
        self._hasher = PartHasher(self.part)

    def _open_first_response(self) -> http.Response:
        for n_failures in itertools.count(1):
            try:
                return self._open(0)
            except HubError as error:  # noqa: PERF203  (pauses follow)
                self._pause_or_raise(error, n_failures, self._cancel)
                check_cancelled(self._cancel)
        raise AssertionError  # itertools.count does not end

    # Monitor loop

    def run(self) -> str:
        """Transfer the missing ranges, and return the SHA-256 of the file. The complete `part` remains open.

        Raises DownloadError, HubError and OSError; `part` is then closed.
        """
        try:
            self._check_disk_space()
            self._monitor()
            if self._failure is not None:
                raise self._failure  # noqa: TRY301  (cleaned up below)
            check_cancelled(self._cancel)
            if self._size_bytes is not None and (missing_ranges := self.part.missing_ranges(self._size_bytes)):
                raise DownloadError(  # noqa: TRY301
                    f"{self._request.path.name} is incomplete: {len(missing_ranges)} byte ranges are missing. "
                    "Start the download again to resume."
                )
            while (sha256 := self._hasher.result(_POLL_S)) is None:
                self._on_progress(self._make_progress("verifying", 0.0))
                check_cancelled(self._cancel)
            self._on_progress(self._make_progress("verifying", 0.0))
            return sha256
        except BaseException:
            self._stop()
            for thread in self._threads:
                thread.join()
            self._hasher.abort()
            self.part.close()
            raise
        finally:
            if self._first_response is not None:
                self._first_response.close()

    def _monitor(self) -> None:
        """Report progress until all connections have ended, and add connections while they increase the speed."""
        self._start_connection()
        history = [(time.monotonic(), self.part.received_bytes)]
        best_bytes_per_s, added_at = 0.0, time.monotonic()
        while (
            running_threads := [thread for thread in self._threads if thread.is_alive()]
        ) or self._has_pending_ranges():
            if not running_threads:  # a connection failed and returned its range after all others had ended
                self._start_connection()
                continue
            running_threads[0].join(_POLL_S)
            now, received_bytes = time.monotonic(), self.part.received_bytes
            history = [point for point in history if now - point[0] <= _SPEED_WINDOW_S] or [(now, received_bytes)]
            history.append((now, received_bytes))
            self._on_progress(self._make_progress("downloading", _bytes_per_s(history)))
            self._hasher.wake()
            if self._cancel.is_set() or self._failure is not None:
                self._stop()
            elif now - added_at >= self._retry_policy.growth_interval_s:
                self._check_disk_space()
                bytes_per_s = _bytes_per_s([point for point in history if point[0] >= added_at])
                is_faster = bytes_per_s > best_bytes_per_s * self._retry_policy.min_speedup
                has_free_connection = len(running_threads) < self._retry_policy.max_connections
                if is_faster and has_free_connection and self._may_grow and self._is_ranged:
                    self._start_connection()
                best_bytes_per_s, added_at = max(bytes_per_s, best_bytes_per_s), now

    def _has_pending_ranges(self) -> bool:
        with self._lock:
            return bool(self._pending) and self._failure is None and not self._stop_event.is_set()

    def _start_connection(self) -> None:
        thread = threading.Thread(target=self._run_connection, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self) -> None:
        """Stop all connections. Bytes that arrive later are not written."""
        with self._lock:
            self._stop_event.set()
            for sock in self._sockets:
                http.shut_down_socket(sock)

    def _check_disk_space(self) -> None:
        check_disk_space(self._request.path, (self._size_bytes or 0) - self.part.received_bytes)

    def _make_progress(self, state: str, bytes_per_s: float) -> DownloadProgress:
        received_bytes = self.part.received_bytes
        missing_bytes = None if self._size_bytes is None else self._size_bytes - received_bytes
        return DownloadProgress(
            name=self._request.path.name, done_bytes=received_bytes, total_bytes=self._size_bytes,
            resumed_bytes=self.part.resumed_bytes, bytes_per_s=bytes_per_s,
            remaining_s=missing_bytes / bytes_per_s if missing_bytes is not None and bytes_per_s > 0 else None,
            state=state,
        )  # fmt: skip

    # Connections

    def _run_connection(self) -> None:
        """Transfer ranges until no range is pending. A failure ends the transfer if no other connection is active."""
        span = None
        try:
            while (span := self._take_range()) is not None:
                self._transfer_range(span)
                with self._lock:
                    self._active.remove(span)
        except BaseException as error:  # noqa: BLE001  (raised again in `run`)
            self._handle_failure(error, span)

    def _handle_failure(self, error: BaseException, span: _Range | None) -> None:
        """Add the range of a failed connection to `_pending`; if no other connection is active, record the failure."""
        with self._lock:
            n_others = sum(thread.is_alive() for thread in self._threads) - 1
            if span is not None and n_others and self._active and isinstance(error, HubError):
                self._active.remove(span)
                self._pending.append(span)
                self._may_grow = False
            elif self._failure is None:
                self._failure = self._make_disk_error(error) if isinstance(error, OSError) else error

    def _make_disk_error(self, error: OSError) -> EdgechatError:
        return DownloadError(
            f"{self._request.path.name}: {error.strerror or error}. The received bytes "
            f"({format_size(self.part.received_bytes)}) are saved. Start the download again to resume."
        )

    def _take_range(self) -> _Range | None:
        """Return a pending range, or else the second half of the longest active range; None if neither is available."""
        with self._lock:
            if self._stop_event.is_set():
                return None
            if self._pending:
                span = self._pending.pop(0)
            else:
                longest_range = max(self._active, key=lambda span: span.end - span.position, default=None)
                if longest_range is None or not self._is_ranged or not self._may_grow:
                    return None
                if longest_range.end - longest_range.position < 2 * _MIN_RANGE_BYTES:
                    return None
                middle = (longest_range.position + longest_range.end) // 2
                span, longest_range.end = _Range(middle, longest_range.end), middle
            self._active.append(span)
            return span

    def _transfer_range(self, span: _Range) -> None:
        """Transfer a range, and reconnect after transient failures. Raises HubError, DownloadError and OSError."""
        n_failures = 0
        while span.position < span.end and not self._stop_event.is_set():
            start = span.position
            try:
                with self._take_response(span.position) as response:
                    self._write_body(response, span)
                if span.end == _UNKNOWN_END or self._stop_event.is_set():
                    return  # the end of the connection marks the end of a file of unknown size
                failure: HubError = http.ConnectionFailedError(
                    f"{self._request.path.name}: the connection ended at byte {span.position}"
                )
            except HubError as error:
                failure = error
            if span.position >= span.end or self._stop_event.is_set():
                return
            if span.end == _UNKNOWN_END or (not self._is_ranged and not self._request.sha256 and not self._validator):
                span.position = 0  # the next response may be for another version of the file
            received_bytes = span.position - start
            has_progressed = received_bytes >= self._retry_policy.min_bytes_per_s * self._retry_policy.read_timeout_s
            n_failures = 1 if has_progressed else n_failures + 1
            self._pause_or_raise(failure, n_failures, self._stop_event)

    def _pause_or_raise(self, error: HubError, n_failures: int, stop_event: threading.Event) -> None:
        """Pause before the next attempt. Raises `error` if it is permanent or no attempt is left."""
        policy = self._retry_policy
        requested_pause_s = 0.0
        can_retry = not isinstance(error, http.PERMANENT_ERRORS)
        if isinstance(error, http.HttpStatusError):
            can_retry, requested_pause_s = error.is_transient, error.retry_after_s or 0.0
            if requested_pause_s > policy.max_pause_s:
                raise http.HttpStatusError(
                    f"{error}. The server requests a pause of {requested_pause_s:.0f} s. Try again later.", error.status
                ) from None
        elif isinstance(error, http.ConnectError):
            can_retry = self._was_reached
        if not can_retry or n_failures >= policy.max_tries:
            raise error
        stop_event.wait(max(requested_pause_s, min(policy.max_pause_s, policy.first_pause_s * 2 ** (n_failures - 1))))

    def _take_response(self, start: int) -> http.Response:
        with self._lock:
            first, self._first_response = self._first_response, None
        if first is not None and start:
            first.close()
            first = None
        return first or self._open(start)

    def _open(self, start: int) -> http.Response:
        headers = {"Range": f"bytes={start}-"}
        if self._validator:
            headers["If-Range"] = self._validator
        response = http.get(
            self._request.url,
            headers=self._request.headers | headers,
            read_timeout_s=self._retry_policy.read_timeout_s,
            on_connect=self._register_socket,
        )
        self._was_reached = True
        return response

    def _register_socket(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets = {other_socket for other_socket in self._sockets if other_socket.fileno() >= 0} | {sock}
            if self._stop_event.is_set():
                http.shut_down_socket(sock)

    def _write_body(self, response: http.Response, span: _Range) -> None:
        """Write the body of `response` until the range is complete or the connection ends."""
        self._check_response(response, span.position)
        position = response.start  # 0 if the server does not support ranges; bytes before `span.position` are skipped
        checked_at, checked_position = time.monotonic(), position
        while position < span.end:
            data = response.read(min(_READ_BYTES, span.end - position))
            if not data or self._stop_event.is_set():  # after `shut_down_socket`, reads can return undefined data
                return
            new_data = data[max(0, span.position - position) :]
            position += len(data)
            if new_data:
                self.part.write(span.position, new_data)
                span.position += len(new_data)
            now = time.monotonic()
            if now - checked_at >= self._retry_policy.read_timeout_s:
                if position - checked_position < self._retry_policy.min_bytes_per_s * (now - checked_at):
                    raise http.ConnectionFailedError(
                        f"{self._request.path.name} is downloading at less than 1 kB/s. Try again later."
                    )
                checked_at, checked_position = now, position

    def _check_response(self, response: http.Response, start: int) -> None:
        """Check file version and start position of a response; record range support. Raises DownloadError."""
        name = self._request.path.name
        if self._size_bytes is not None and response.size_bytes not in {None, self._size_bytes}:
            raise DownloadError(
                f"{name} was changed on the server: expected {self._size_bytes} bytes, got {response.size_bytes}. "
                "Start the download again to get the new version."
            )
        if self._validator and response.validator not in {"", self._validator}:
            raise DownloadError(f"{name} was changed on the server. Start the download again to get the new version.")
        if response.start not in {0, start}:
            raise DownloadError(
                f"{name}: the server sent data from byte {response.start} instead of byte {start}. Try again later."
            )
        is_versioned = bool(self._request.sha256 or self._validator)
        self._is_ranged = response.status == _PARTIAL_CONTENT and self._size_bytes is not None and is_versioned


def _bytes_per_s(history: list[tuple[float, int]]) -> float:
    """Return the average speed over `history`, whose points are (time in seconds, received bytes)."""
    (start_s, start_bytes), (end_s, end_bytes) = history[0], history[-1]
    return (end_bytes - start_bytes) / (end_s - start_s) if end_s > start_s else 0.0
