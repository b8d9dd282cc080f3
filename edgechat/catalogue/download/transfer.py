"""One attempt at a file: connections that write to one part, and a watcher that adds more where that helps."""

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
# What is worth a connection of its own.
_LEAST_SHARE_BYTES: Final = 8 << 20
# The end of a file whose size the server does not say.
_UNKNOWN: Final = 1 << 62
_TICK_S: Final = 0.1
# The speed is that of the last moments.
_SPEED_OVER_S: Final = 5.0


class _Span:
    """A range that one connection gets; another may take over a part of its end."""

    def __init__(self, at: int, end: int) -> None:
        self.at = at
        self.end = end


class Transfer:
    """One attempt: connections that write to one part, and one thread (the caller's) that watches them."""

    def __init__(
        self, wanted: DownloadRequest, tell: ProgressCallback, cancel: threading.Event, patience: RetryPolicy
    ) -> None:
        """Asks the server which file this is, where nobody knows. Raises HubError, Cancelled and OSError."""
        self._wanted = wanted
        self._tell = tell
        self._cancel = cancel
        self._patience = patience
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._size = wanted.size_bytes
        self._validator = ""
        self._is_ranged = False
        self._was_reached = False
        self._first: http.Response | None = None
        if self._size is None or not wanted.sha256:
            self._first = self._ask_first()
            self._size = self._first.size_bytes if self._size is None else self._size
            self._validator = "" if wanted.sha256 else self._first.validator
        self.part = PartialFile(wanted.path, FileVersion(self._size, wanted.sha256 or self._validator))
        self._failure: BaseException | None = None
        missing = self.part.missing_ranges(self._size) if self._size is not None else [(0, _UNKNOWN)]
        self._todo = [_Span(*span) for span in missing]
        self._active: list[_Span] = []
        self._threads: list[threading.Thread] = []
        self._may_grow = True
        self._hasher = PartHasher(self.part)

    def _ask_first(self) -> http.Response:
        for failures in itertools.count(1):
            try:
                return self._open(0)
            except HubError as error:  # noqa: PERF203  (waits follow)
                self._pause_or_raise(error, failures, self._cancel)
                check_cancelled(self._cancel)
        raise AssertionError  # the count does not end

    # The watcher

    def run(self) -> str:
        """Returns the hash; then the part is whole and still open. Raises as `download`; then it is closed."""
        try:
            self._check_room()
            self._watch()
            if self._failure is not None:
                raise self._failure  # noqa: TRY301  (handled like all that goes wrong here)
            check_cancelled(self._cancel)
            if self._size is not None and (gaps := self.part.missing_ranges(self._size)):
                raise DownloadError(f"{self._wanted.path.name} lacks {len(gaps)} pieces at its end; run it again")  # noqa: TRY301
            while (found := self._hasher.result(_TICK_S)) is None:
                self._tell(self._report("verifying", 0.0))
                check_cancelled(self._cancel)
            self._tell(self._report("verifying", 0.0))
            return found
        except BaseException:
            self._stop()
            for thread in self._threads:
                thread.join()
            self._hasher.abort()
            self.part.close()
            raise
        finally:
            if self._first is not None:
                self._first.close()

    def _watch(self) -> None:
        self._start()
        history = [(time.monotonic(), self.part.received_bytes)]
        before_bps, added_s = 0.0, time.monotonic()
        while (running := [thread for thread in self._threads if thread.is_alive()]) or self._is_left():
            if not running:  # what one left over came too late for the others
                self._start()
                continue
            running[0].join(_TICK_S)
            now_s, done = time.monotonic(), self.part.received_bytes
            history = [point for point in history if now_s - point[0] <= _SPEED_OVER_S] or [(now_s, done)]
            history.append((now_s, done))
            self._tell(self._report("downloading", _speed(history)))
            self._hasher.wake()
            if self._cancel.is_set() or self._failure is not None:
                self._stop()
            elif now_s - added_s >= self._patience.growth_interval_s:
                self._check_room()
                now_bps = _speed([point for point in history if point[0] >= added_s])
                is_worth = (
                    now_bps > before_bps * self._patience.min_speedup and len(running) < self._patience.max_connections
                )
                if is_worth and self._may_grow and self._is_ranged:
                    self._start()
                before_bps, added_s = max(now_bps, before_bps), now_s

    def _is_left(self) -> bool:
        with self._lock:
            return bool(self._todo) and self._failure is None and not self._stopped.is_set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self) -> None:
        """Whoever reads or waits ends now; what comes after this is not written down."""
        with self._lock:
            self._stopped.set()
            for connected in self._sockets:
                http.shut_down_socket(connected)

    def _check_room(self) -> None:
        """Raises DownloadError if the rest would fill the disk."""
        check_disk_space(self._wanted.path, (self._size or 0) - self.part.received_bytes)

    def _report(self, state: str, speed: float) -> DownloadProgress:
        done = self.part.received_bytes
        left = (self._size - done) / speed if self._size is not None and speed > 0 else None
        return DownloadProgress(
            name=self._wanted.path.name, done_bytes=done, total_bytes=self._size,
            resumed_bytes=self.part.resumed_bytes, bytes_per_s=speed, remaining_s=left, state=state,
        )  # fmt: skip

    # The connections

    def _work(self) -> None:
        """Take ranges until none is left. What goes wrong for good ends all of it, unless others go on."""
        span = None
        try:
            while (span := self._take()) is not None:
                self._get_span(span)
                with self._lock:
                    self._active.remove(span)
        except BaseException as error:  # noqa: BLE001  (raised again in the watcher)
            self._failed(error, span)

    def _failed(self, error: BaseException, span: _Span | None) -> None:
        """A server may allow fewer connections than were tried: as long as another one works, it gets the rest."""
        with self._lock:
            others = sum(thread.is_alive() for thread in self._threads) - 1
            if span is not None and others and self._active and isinstance(error, HubError):
                self._active.remove(span)
                self._todo.append(span)
                self._may_grow = False
            elif self._failure is None:
                self._failure = self._in_words(error) if isinstance(error, OSError) else error

    def _in_words(self, error: OSError) -> EdgechatError:
        return DownloadError(
            f"{self._wanted.path.name}: {error.strerror or error}, after {size(self.part.received_bytes)}, which are kept; "
            "run it again when that is mended"
        )

    def _take(self) -> _Span | None:
        """A range that nobody gets yet, or else the second half of the longest that somebody gets."""
        with self._lock:
            if self._stopped.is_set():
                return None
            if self._todo:
                span = self._todo.pop(0)
            else:
                longest = max(self._active, key=lambda s: s.end - s.at, default=None)
                if longest is None or not self._is_ranged or not self._may_grow:
                    return None
                if longest.end - longest.at < 2 * _LEAST_SHARE_BYTES:
                    return None
                middle = (longest.at + longest.end) // 2
                span, longest.end = _Span(middle, longest.end), middle
            self._active.append(span)
            return span

    def _get_span(self, span: _Span) -> None:
        """Get all of it, over as many connections as that takes. Raises HubError, DownloadError and OSError."""
        failures = 0
        while span.at < span.end and not self._stopped.is_set():
            at = span.at
            try:
                with self._response(span.at) as response:
                    self._read(response, span)
                if span.end == _UNKNOWN or self._stopped.is_set():
                    return  # nobody knows how long it is, and nobody complained
                broke: HubError = http.ConnectionFailedError(
                    f"{self._wanted.path.name}: the connection ended at byte {span.at}"
                )
            except HubError as error:
                broke = error
            if span.at >= span.end or self._stopped.is_set():
                return
            if span.end == _UNKNOWN or (not self._is_ranged and not self._wanted.sha256 and not self._validator):
                span.at = 0  # nothing says that it is the same file the next time
            is_progress = span.at - at >= self._patience.min_bytes_per_s * self._patience.read_timeout_s
            failures = 1 if is_progress else failures + 1
            self._pause_or_raise(broke, failures, self._stopped)

    def _pause_or_raise(self, error: HubError, failures: int, ended: threading.Event) -> None:
        """Wait before another try, where one may help; raise the error where not."""
        refused = error if isinstance(error, http.HttpStatusError) else None
        wished_s = (refused.retry_after_s or 0.0) if refused else 0.0
        if refused is not None and wished_s > self._patience.max_pause_s:
            raise http.HttpStatusError(
                f"{error}; it wants to be asked again in {wished_s:.0f} s", refused.status
            ) from None
        may_pass = refused.is_transient if refused else self._was_reached or not isinstance(error, http.ConnectError)
        if not may_pass or failures >= self._patience.max_tries:
            raise error
        ended.wait(max(wished_s, min(self._patience.max_pause_s, self._patience.first_pause_s * 2 ** (failures - 1))))

    def _response(self, start: int) -> http.Response:
        with self._lock:
            first, self._first = self._first, None
        if first is not None and start:
            first.close()
            first = None
        return first or self._open(start)

    def _open(self, start: int) -> http.Response:
        headers = {"Range": f"bytes={start}-"}
        if self._validator:
            headers["If-Range"] = self._validator
        response = http.get(
            self._wanted.url,
            headers=self._wanted.headers | headers,
            read_timeout_s=self._patience.read_timeout_s,
            on_connect=self._connected,
        )
        self._was_reached = True
        return response

    def _connected(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0} | {connected}
            if self._stopped.is_set():
                http.shut_down_socket(connected)

    def _read(self, response: http.Response, span: _Span) -> None:
        """Write down what comes, until the range is whole or nothing comes any more."""
        self._check_same(response, span.at)
        at = response.start  # 0 from a server without ranges: what is there already is read past
        watched_s, watched = time.monotonic(), at
        while at < span.end:
            data = response.read(min(_READ_BYTES, span.end - at))
            if not data or self._stopped.is_set():  # what a stopped connection still gives may be anything
                return
            keep = data[max(0, span.at - at) :]
            at += len(data)
            if keep:
                self.part.write(span.at, keep)
                span.at += len(keep)
            now_s = time.monotonic()
            if now_s - watched_s >= self._patience.read_timeout_s:
                if at - watched < self._patience.min_bytes_per_s * (now_s - watched_s):
                    raise http.ConnectionFailedError(f"{self._wanted.path.name} comes at less than 1 kB a second")
                watched_s, watched = now_s, at

    def _check_same(self, response: http.Response, start: int) -> None:
        """Raises DownloadError if this is another version of the file, or another part of it."""
        name = self._wanted.path.name
        if self._size is not None and response.size_bytes not in {None, self._size}:
            raise DownloadError(
                f"{name} should have {self._size} bytes, but the server has {response.size_bytes}: it was changed there"
            )
        if self._validator and response.validator not in {"", self._validator}:
            raise DownloadError(f"{name} was changed on the server; run it again to get the new one")
        if response.start not in {0, start}:
            raise DownloadError(f"{name}: the server sent bytes from {response.start}, not {start}")
        knows = bool(self._wanted.sha256 or self._validator)
        self._is_ranged = response.status == 206 and self._size is not None and knows  # noqa: PLR2004


def _speed(history: list[tuple[float, int]]) -> float:
    """Bytes per second between the first point and the last."""
    (first_s, first), (last_s, last) = history[0], history[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
