"""One attempt to transfer a file over parallel connections that write to one partial file."""

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
from edgechat.humanize import size

_READ_BYTES: Final = 512 << 10
# Minimum number of bytes for which another connection is opened.
_MIN_RANGE_BYTES: Final = 8 << 20
# Range end of a file of unknown size.
_UNKNOWN_END: Final = 1 << 62
_TICK_S: Final = 0.1
# Period over which the displayed speed is averaged.
_SPEED_WINDOW_S: Final = 5.0
_PARTIAL_CONTENT: Final = 206


class _Range:
    """Bytes from `at` to `end` that one connection must still transfer. Another connection may take the second half."""

    def __init__(self, at: int, end: int) -> None:
        self.at = at
        self.end = end


class Transfer:
    """One attempt to transfer a file, with connection threads that write to `part` and a monitor loop in `run`."""

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
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._size_bytes = request.size_bytes
        self._validator = ""
        self._is_ranged = False
        self._was_reached = False
        self._first_response: http.Response | None = None
        if self._size_bytes is None or not request.sha256:
            self._first_response = response = self._open_first()
            self._size_bytes = response.size_bytes if self._size_bytes is None else self._size_bytes
            self._validator = "" if request.sha256 else response.validator
        self.part = PartialFile(request.path, FileVersion(self._size_bytes, request.sha256 or self._validator))
        self._failure: BaseException | None = None
        missing = self.part.missing_ranges(self._size_bytes) if self._size_bytes is not None else [(0, _UNKNOWN_END)]
        self._pending = [_Range(*span) for span in missing]
        self._active: list[_Range] = []
        self._threads: list[threading.Thread] = []
        self._may_grow = True
        self._hasher = PartHasher(self.part)

    def _open_first(self) -> http.Response:
        for failures in itertools.count(1):
            try:
                return self._open(0)
            except HubError as error:  # noqa: PERF203  (pauses follow)
                self._pause_or_raise(error, failures, self._cancel)
                check_cancelled(self._cancel)
        raise AssertionError  # itertools.count does not end

    # Monitor loop

    def run(self) -> str:
        """Transfer the missing ranges, and return the SHA-256 of the file. `part` is complete and stays open.

        Raises DownloadError, HubError and OSError after closing `part`.
        """
        try:
            self._check_disk_space()
            self._monitor()
            if self._failure is not None:
                raise self._failure  # noqa: TRY301  (cleaned up below)
            check_cancelled(self._cancel)
            if self._size_bytes is not None and (gaps := self.part.missing_ranges(self._size_bytes)):
                raise DownloadError(  # noqa: TRY301
                    f"{self._request.path.name} is incomplete: {len(gaps)} ranges are missing. "
                    "Start the download again to resume."
                )
            while (sha256 := self._hasher.result(_TICK_S)) is None:
                self._on_progress(self._progress("verifying", 0.0))
                check_cancelled(self._cancel)
            self._on_progress(self._progress("verifying", 0.0))
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
        """Report progress until all connections have ended, and add connections while that increases the speed."""
        self._start_connection()
        history = [(time.monotonic(), self.part.received_bytes)]
        best_bytes_per_s, added_at = 0.0, time.monotonic()
        while (running := [thread for thread in self._threads if thread.is_alive()]) or self._has_pending():
            if not running:  # a connection failed and returned its range after all others had ended
                self._start_connection()
                continue
            running[0].join(_TICK_S)
            now, received = time.monotonic(), self.part.received_bytes
            history = [point for point in history if now - point[0] <= _SPEED_WINDOW_S] or [(now, received)]
            history.append((now, received))
            self._on_progress(self._progress("downloading", _bytes_per_s(history)))
            self._hasher.wake()
            if self._cancel.is_set() or self._failure is not None:
                self._stop()
            elif now - added_at >= self._retry_policy.growth_interval_s:
                self._check_disk_space()
                bytes_per_s = _bytes_per_s([point for point in history if point[0] >= added_at])
                is_faster = bytes_per_s > best_bytes_per_s * self._retry_policy.min_speedup
                has_free_connection = len(running) < self._retry_policy.max_connections
                if is_faster and has_free_connection and self._may_grow and self._is_ranged:
                    self._start_connection()
                best_bytes_per_s, added_at = max(bytes_per_s, best_bytes_per_s), now

    def _has_pending(self) -> bool:
        with self._lock:
            return bool(self._pending) and self._failure is None and not self._stopped.is_set()

    def _start_connection(self) -> None:
        thread = threading.Thread(target=self._run_connection, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self) -> None:
        """Stop all connections. Bytes that arrive later are not written."""
        with self._lock:
            self._stopped.set()
            for connected in self._sockets:
                http.shut_down_socket(connected)

    def _check_disk_space(self) -> None:
        check_disk_space(self._request.path, (self._size_bytes or 0) - self.part.received_bytes)

    def _progress(self, state: str, bytes_per_s: float) -> DownloadProgress:
        done = self.part.received_bytes
        is_measurable = self._size_bytes is not None and bytes_per_s > 0
        return DownloadProgress(
            name=self._request.path.name, done_bytes=done, total_bytes=self._size_bytes,
            resumed_bytes=self.part.resumed_bytes, bytes_per_s=bytes_per_s,
            remaining_s=((self._size_bytes or 0) - done) / bytes_per_s if is_measurable else None, state=state,
        )  # fmt: skip

    # Connections

    def _run_connection(self) -> None:
        """Transfer ranges until none is pending. A permanent failure ends the attempt if no other connection works."""
        span = None
        try:
            while (span := self._take_range()) is not None:
                self._transfer_range(span)
                with self._lock:
                    self._active.remove(span)
        except BaseException as error:  # noqa: BLE001  (raised again in `run`)
            self._handle_failure(error, span)

    def _handle_failure(self, error: BaseException, span: _Range | None) -> None:
        """Return the range of a failed connection to `_pending`. If no other connection works, fail the attempt."""
        with self._lock:
            n_others = sum(thread.is_alive() for thread in self._threads) - 1
            if span is not None and n_others and self._active and isinstance(error, HubError):
                self._active.remove(span)
                self._pending.append(span)
                self._may_grow = False
            elif self._failure is None:
                self._failure = self._disk_error(error) if isinstance(error, OSError) else error

    def _disk_error(self, error: OSError) -> EdgechatError:
        return DownloadError(
            f"{self._request.path.name}: {error.strerror or error}. {size(self.part.received_bytes)} have arrived "
            "and are saved. Start the download again to resume."
        )

    def _take_range(self) -> _Range | None:
        """Return a pending range, or else the second half of the longest active range; None if there is no work."""
        with self._lock:
            if self._stopped.is_set():
                return None
            if self._pending:
                span = self._pending.pop(0)
            else:
                longest = max(self._active, key=lambda span: span.end - span.at, default=None)
                if longest is None or not self._is_ranged or not self._may_grow:
                    return None
                if longest.end - longest.at < 2 * _MIN_RANGE_BYTES:
                    return None
                middle = (longest.at + longest.end) // 2
                span, longest.end = _Range(middle, longest.end), middle
            self._active.append(span)
            return span

    def _transfer_range(self, span: _Range) -> None:
        """Transfer a range, with a new connection after each failure. Raises HubError, DownloadError and OSError."""
        failures = 0
        while span.at < span.end and not self._stopped.is_set():
            at = span.at
            try:
                with self._take_response(span.at) as response:
                    self._write_body(response, span)
                if span.end == _UNKNOWN_END or self._stopped.is_set():
                    return  # a file of unknown size ends with the connection
                failure: HubError = http.ConnectionFailedError(
                    f"{self._request.path.name}: the connection ended at byte {span.at}"
                )
            except HubError as error:
                failure = error
            if span.at >= span.end or self._stopped.is_set():
                return
            if span.end == _UNKNOWN_END or (not self._is_ranged and not self._request.sha256 and not self._validator):
                span.at = 0  # the next response may be another version of the file
            is_progress = span.at - at >= self._retry_policy.min_bytes_per_s * self._retry_policy.read_timeout_s
            failures = 1 if is_progress else failures + 1
            self._pause_or_raise(failure, failures, self._stopped)

    def _pause_or_raise(self, error: HubError, failures: int, stopped: threading.Event) -> None:
        """Pause before the next attempt, or raise the error if it is permanent or this was the last attempt."""
        policy = self._retry_policy
        requested_s = 0.0
        may_retry = not isinstance(error, http.InvalidUrlError)
        if isinstance(error, http.HttpStatusError):
            may_retry, requested_s = error.is_transient, error.retry_after_s or 0.0
            if requested_s > policy.max_pause_s:
                raise http.HttpStatusError(
                    f"{error}. The server requests a pause of {requested_s:.0f} s. Try again later.", error.status
                ) from None
        elif isinstance(error, http.ConnectError):
            may_retry = self._was_reached
        if not may_retry or failures >= policy.max_tries:
            raise error
        stopped.wait(max(requested_s, min(policy.max_pause_s, policy.first_pause_s * 2 ** (failures - 1))))

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

    def _register_socket(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets = {open_ for open_ in self._sockets if open_.fileno() >= 0} | {connected}
            if self._stopped.is_set():
                http.shut_down_socket(connected)

    def _write_body(self, response: http.Response, span: _Range) -> None:
        """Write the body of `response` until the range is complete or the connection ends."""
        self._check_same_file(response, span.at)
        at = response.start  # 0 from a server without range support: bytes before `span.at` are skipped
        checked_at, checked_bytes = time.monotonic(), at
        while at < span.end:
            data = response.read(min(_READ_BYTES, span.end - at))
            if not data or self._stopped.is_set():  # data read after the shutdown is undefined
                return
            new_data = data[max(0, span.at - at) :]
            at += len(data)
            if new_data:
                self.part.write(span.at, new_data)
                span.at += len(new_data)
            now = time.monotonic()
            if now - checked_at >= self._retry_policy.read_timeout_s:
                if at - checked_bytes < self._retry_policy.min_bytes_per_s * (now - checked_at):
                    raise http.ConnectionFailedError(
                        f"{self._request.path.name} is downloading at less than 1 kB/s. Try again later."
                    )
                checked_at, checked_bytes = now, at

    def _check_same_file(self, response: http.Response, start: int) -> None:
        """Raise DownloadError if the response is for another version of the file, or does not start at `start`."""
        name = self._request.path.name
        if self._size_bytes is not None and response.size_bytes not in {None, self._size_bytes}:
            raise DownloadError(
                f"{name} was changed on the server: expected {self._size_bytes} bytes, got {response.size_bytes}. "
                "Start the download again to get the new version."
            )
        if self._validator and response.validator not in {"", self._validator}:
            raise DownloadError(f"{name} was changed on the server. Start the download again to get the new version.")
        if response.start not in {0, start}:
            raise DownloadError(f"{name}: the server sent bytes from {response.start}, not from {start}")
        is_versioned = bool(self._request.sha256 or self._validator)
        self._is_ranged = response.status == _PARTIAL_CONTENT and self._size_bytes is not None and is_versioned


def _bytes_per_s(history: list[tuple[float, int]]) -> float:
    """Return the average speed over `history`, whose points are (time in seconds, received bytes)."""
    (first_s, first), (last_s, last) = history[0], history[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
