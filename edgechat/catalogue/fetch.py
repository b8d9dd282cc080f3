"""One attempt at a file: connections that write to one part, and a watcher that adds more where that helps."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.catalogue import web
from edgechat.catalogue.hashing import Hasher
from edgechat.catalogue.part import Identity, Part
from edgechat.errors import DownloadError, EdgechatError

# What a download leaves of the disk to everybody else.
_SPARE_DISK_BYTES: Final = 64 << 20
_READ_BYTES: Final = 512 << 10
# What is worth a connection of its own.
_LEAST_SHARE_BYTES: Final = 8 << 20
# The end of a file whose size the server does not say.
_UNKNOWN: Final = 1 << 62
_TICK_S: Final = 0.1
# The speed is that of the last moments.
_SPEED_OVER_S: Final = 5.0


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """When to give up, and when to try otherwise."""

    tries: int = 5
    """Failures in a row, with less between them than a connection at the least speed brings."""
    pause_s: float = 0.5
    """Before the second try; doubled each time."""
    longest_pause_s: float = 60.0
    """A server that asks for more (Retry-After) is not waited for."""
    read_s: float = web.READ_S
    """Longest silence on a connection."""
    least_bytes_per_s: int = 1024
    """A connection that stays below this for `read_s` is dropped, and another made."""
    max_connections: int = 4
    grow_s: float = 2.0
    """How long the effect of another connection is watched."""
    grow_by: float = 1.2
    """It stays worth trying more while the last one made things so much faster."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A file to get."""

    url: str
    path: Path
    """Its name when it is whole."""
    size_bytes: int | None = None
    sha256: str = ""
    """What it must hash to; "" if nobody said."""
    headers: dict[str, str] = {}
    """For the first server, not for those it leads to."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    name: str
    done_bytes: int
    total_bytes: int | None
    resumed_bytes: int
    """Of those done, what was there from another time."""
    bytes_per_s: float
    left_s: float | None
    state: str
    """`waiting` for another process, `downloading`, or `verifying`."""


Tell = Callable[[Progress], None]


class Cancelled(DownloadError):  # noqa: N818  (somebody asked for it)
    """Somebody asked for it; what arrived is kept."""


class _Span:
    """A range that one connection gets; another may take over a part of its end."""

    def __init__(self, at: int, end: int) -> None:
        self.at = at
        self.end = end


class Fetch:
    """One attempt: connections that write to one part, and one thread (the caller's) that watches them."""

    def __init__(self, wanted: Wanted, tell: Tell, cancel: threading.Event, patience: Patience) -> None:
        self._wanted = wanted
        self._tell = tell
        self._cancel = cancel
        self._patience = patience
        self._size = wanted.size_bytes
        self._etag = ""
        self._first: web.Response | None = None
        if self._size is None or not wanted.sha256:  # which file this is must be asked first
            self._first = self._patiently(lambda: self._open(0))
            self._size = self._first.size_bytes if self._size is None else self._size
            self._etag = "" if wanted.sha256 else self._first.etag
        self.part = Part(wanted.path, Identity(self._size, wanted.sha256 or self._etag))
        self._lock = threading.Lock()
        self._responses: set[web.Response] = set()
        self._failure: EdgechatError | None = None
        self._is_ranged = False
        missing = self.part.missing(self._size) if self._size is not None else [(0, _UNKNOWN)]
        self._todo = [_Span(*span) for span in missing]
        self._active: list[_Span] = []
        self._is_stopped = False
        self._hasher = Hasher(self.part)

    # The watcher

    def run(self) -> str:
        """Returns the hash; then the part is whole and still open. Raises as `download`; then it is closed."""
        try:
            self._check_room()
            self._watch()
            if self._failure is not None:
                raise self._failure  # noqa: TRY301  (handled like all that goes wrong here)
            check_cancelled(self._cancel)
            self._tell(self._report("verifying", 0.0))
            return self._hasher.result()
        except BaseException:
            self._stop()
            with contextlib.suppress(OSError):
                self._hasher.result()
            self.part.close()
            raise
        finally:
            if self._first is not None:
                self._first.close()

    def _watch(self) -> None:
        threads = [self._start()]
        history = [(time.monotonic(), self.part.done_bytes)]
        before_bps, added_s = 0.0, time.monotonic()
        while running := [thread for thread in threads if thread.is_alive()]:
            running[0].join(_TICK_S)
            now_s, done = time.monotonic(), self.part.done_bytes
            history = [point for point in history if now_s - point[0] <= _SPEED_OVER_S] or [(now_s, done)]
            history.append((now_s, done))
            self._tell(self._report("downloading", _speed(history)))
            self._hasher.wake()
            if self._cancel.is_set() or self._failure is not None:
                self._stop()
            elif now_s - added_s >= self._patience.grow_s:
                self._check_room()
                now_bps = _speed([point for point in history if point[0] >= added_s])
                if now_bps > before_bps * self._patience.grow_by and self._may_grow(running):
                    threads.append(self._start())
                before_bps, added_s = max(now_bps, before_bps), now_s

    def _may_grow(self, running: list[threading.Thread]) -> bool:
        return self._is_ranged and len(running) < self._patience.max_connections

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        return thread

    def _stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            for response in self._responses:
                response.stop()

    def _check_room(self) -> None:
        """Raises DownloadError if the rest would fill the disk."""
        left = (self._size or 0) - self.part.done_bytes
        free = shutil.disk_usage(self._wanted.path.parent).free
        if left + _SPARE_DISK_BYTES > free:
            raise DownloadError(
                f"{self._wanted.path.name} needs {left / 1e6:.0f} MB more and {_SPARE_DISK_BYTES / 1e6:.0f} MB to spare, "
                f"but {self._wanted.path.parent} has {free / 1e6:.0f} MB free; what arrived is kept: make room, and run it "
                "again"
            )

    def _report(self, state: str, speed: float) -> Progress:
        done = self.part.done_bytes
        left = (self._size - done) / speed if self._size is not None and speed > 0 else None
        return Progress(
            name=self._wanted.path.name, done_bytes=done, total_bytes=self._size,
            resumed_bytes=self.part.resumed_bytes, bytes_per_s=speed, left_s=left, state=state,
        )  # fmt: skip

    # The connections

    def _work(self) -> None:
        """Take ranges until none is left. What goes wrong for good ends all of it."""
        try:
            while (span := self._take()) is not None:
                self._get_span(span)
                with self._lock:
                    self._active.remove(span)
        except (EdgechatError, OSError) as error:
            with self._lock:
                self._failure = self._failure or self._in_words(error)

    def _in_words(self, error: EdgechatError | OSError) -> EdgechatError:
        if isinstance(error, EdgechatError):
            return error
        return DownloadError(
            f"{self._wanted.path.name}: {error.strerror or error}, after {self.part.done_bytes / 1e6:.0f} MB, which are kept; "
            "run it again when that is mended"
        )

    def _take(self) -> _Span | None:
        """A range that nobody gets yet, or else the second half of the longest that somebody gets."""
        with self._lock:
            if self._is_stopped:
                return None
            if self._todo:
                span = self._todo.pop(0)
            else:
                longest = max(self._active, key=lambda s: s.end - s.at, default=None)
                if not self._is_ranged or longest is None or longest.end - longest.at < 2 * _LEAST_SHARE_BYTES:
                    return None
                middle = (longest.at + longest.end) // 2
                span, longest.end = _Span(middle, longest.end), middle
            self._active.append(span)
            return span

    def _get_span(self, span: _Span) -> None:
        """Get all of it, over as many connections as that takes. Raises HubError, DownloadError and OSError."""
        failures = 0
        while span.at < span.end and not self._is_stopped:
            at = span.at
            try:
                with self._response(span.at) as response:
                    self._read(response, span)
                    self._responses.discard(response)
                if span.end == _UNKNOWN:  # nobody knows how long it is, and nobody complained
                    return
                broke = web.Unreachable(f"{self._wanted.path.name}: the connection ended at byte {span.at}")
            except web.Unreachable as error:
                broke = error
            if span.end == _UNKNOWN:
                span.at = 0
            if span.at >= span.end or self._is_stopped:
                return
            is_progress = span.at - at >= self._patience.least_bytes_per_s * self._patience.read_s
            failures = 0 if is_progress else failures + 1
            if failures >= self._patience.tries:
                raise broke
            self._pause(failures)

    def _response(self, start: int) -> web.Response:
        with self._lock:
            first, self._first = self._first, None
        if first is not None and start:
            first.close()
            first = None
        response = first or self._patiently(lambda: self._open(start))
        with self._lock:
            self._responses.add(response)
            if self._is_stopped:
                response.stop()
        return response

    def _open(self, start: int) -> web.Response:
        headers = self._wanted.headers | ({"If-Range": self._etag} if self._etag else {}) | {"Range": f"bytes={start}-"}
        return web.get(self._wanted.url, headers=headers, read_s=self._patience.read_s)

    def _patiently(self, ask: Callable[[], web.Response]) -> web.Response:
        """Ask again where that may help. Raises HubError, and Cancelled."""
        for failures in range(self._patience.tries):
            try:
                return ask()
            except (web.Unreachable, web.Refused) as error:  # noqa: PERF203  (waits follow)
                last = error
                if isinstance(error, web.Refused) and not error.may_pass:
                    raise
                wished_s = (error.retry_after_s or 0.0) if isinstance(error, web.Refused) else 0.0
                if wished_s > self._patience.longest_pause_s:
                    raise web.Refused(f"{error}; it wants to be asked again in {wished_s:.0f} s", 429) from None
                if failures + 1 < self._patience.tries:
                    self._pause(failures, wished_s)
        raise last

    def _pause(self, failures: int, wished_s: float = 0.0) -> None:
        pause_s = min(self._patience.longest_pause_s, self._patience.pause_s * 2**failures)
        self._cancel.wait(max(wished_s, pause_s))
        check_cancelled(self._cancel)

    def _read(self, response: web.Response, span: _Span) -> None:
        """Write down what comes, until the range is whole or nothing comes any more."""
        self._check_same(response, span.at)
        at = response.start  # 0 from a server without ranges: what is there already is read past
        watched_s, watched = time.monotonic(), at
        while at < span.end:
            data = response.read(min(_READ_BYTES, span.end - at))
            if not data:
                return
            keep = data[max(0, span.at - at) :]
            at += len(data)
            if keep:
                self.part.write(span.at, keep)
                span.at += len(keep)
            now_s = time.monotonic()
            if now_s - watched_s >= self._patience.read_s:
                if at - watched < self._patience.least_bytes_per_s * (now_s - watched_s):
                    raise web.Unreachable(f"{self._wanted.path.name} comes at less than 1 kB a second")
                watched_s, watched = now_s, at

    def _check_same(self, response: web.Response, start: int) -> None:
        """Raises DownloadError if this is another version of the file, or another part of it."""
        name = self._wanted.path.name
        if self._size is not None and response.size_bytes not in {None, self._size}:
            raise DownloadError(
                f"{name} should have {self._size} bytes, but the server has {response.size_bytes}: it was changed there"
            )
        if self._etag and response.etag not in {"", self._etag}:
            raise DownloadError(f"{name} was changed on the server; run it again to get the new one")
        if response.start not in {0, start}:
            raise DownloadError(f"{name}: the server sent bytes from {response.start}, not {start}")
        self._is_ranged = response.status == 206 and self._size is not None  # noqa: PLR2004


def _speed(history: list[tuple[float, int]]) -> float:
    """Bytes per second between the first point and the last."""
    (first_s, first), (last_s, last) = history[0], history[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def check_cancelled(cancel: threading.Event) -> None:
    """Raises Cancelled."""
    if cancel.is_set():
        raise Cancelled("stopped; what arrived is kept, and the same command goes on from there")
