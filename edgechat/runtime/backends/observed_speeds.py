"""Saved speeds of recent replies, by model file, backend on this machine, and number of threads.

Speeds that disagree with the kernel benchmark replace its predictions (planner/observed_speed.py), and the benchmark is
run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec

from edgechat import paths
from edgechat.files import JsonFile, make_file_key
from edgechat.hardware.cpu import read_cpu
from edgechat.planner.observed_speed import ObservedSpeed
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import Bundle

_VERSION: Final = 1
_MAX_ENTRIES: Final = 200
# Number of replies that are saved for each entry. A correction lasts for at most this number of replies if they neither
# confirm nor contradict the prediction.
_MAX_REPLIES: Final = 15
# Maximum size of the file. Two hundred full entries take about 250 kB.
_MAX_FILE_BYTES: Final = 1 << 20
# Age from which a reply is ignored, because drivers, kernels and cooling change.
_MAX_AGE_S: Final = 30 * 86400.0
# Minimum time between two runs of the kernel benchmark that were triggered by replies.
_REMEASUREMENT_INTERVAL_S: Final = 86400.0

Work = Literal["decode", "prefill"]
_Speed = Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Reply(msgspec.Struct, frozen=True, array_like=True):
    """Speed of a reply in tokens per second, and its time in seconds since 1970."""

    tps: _Speed
    measured_at: _Time


class _Content(msgspec.Struct, kw_only=True):
    """Content of the file with the observed speeds."""

    version: int = 0
    remeasured_at: _Time = 0.0
    """Time of the last kernel benchmark run that was triggered by replies, in seconds since 1970."""
    replies: dict[str, list[_Reply]] = {}
    """Recent replies by key, oldest reply first. The key that changed last is the last key."""


class ObservedSpeeds:
    """Saved speeds of replies with one backend. The file is read once for many look-ups."""

    def __init__(self, bundle: Bundle, backend: str) -> None:
        """Read the file. `backend` is the name of a module of `bundle`."""
        self._replies = _read().replies
        # Computing the key takes a few milliseconds, because it contains the processor and the size of the module.
        self._backend_key = make_backend_key(bundle, backend) if self._replies else ""

    def find(self, model_path: str, n_threads: int, n_threads_batch: int) -> ObservedSpeed:
        """Return the speeds of a model's recent replies with these numbers of threads for decoding and prefill."""
        if not self._backend_key:
            return ObservedSpeed()
        return ObservedSpeed(
            decode_tps=self._find(model_path, "decode", n_threads),
            prefill_tps=self._find(model_path, "prefill", n_threads_batch),
        )

    def _find(self, model_path: str, work: Work, n_threads: int) -> tuple[float, ...]:
        now = time.time()
        replies = self._replies.get(_make_key(model_path, self._backend_key, work, n_threads), [])
        return tuple(reply.tps for reply in replies if 0 <= now - reply.measured_at <= _MAX_AGE_S)


def make_backend_key(bundle: Bundle, backend: str) -> str:
    """Return a key for a backend on this machine; "" if `bundle` has no module of this name."""
    module = next((module for module in bundle.modules if module.name == backend), None)
    return verdicts.compute_verdict_key(bundle, module, read_cpu()) if module is not None else ""


def record(
    model_path: str, backend_key: str, speeds: Mapping[tuple[Work, int], list[float]],
    clock: Callable[[], float] = time.time,
) -> None:  # fmt: skip
    """Save the speeds of a model's replies, in tokens per second, by work and number of threads."""
    content, now = _read(), clock()
    for (work, n_threads), values in speeds.items():
        key = _make_key(model_path, backend_key, work, n_threads)
        earlier_replies = content.replies.pop(key, [])
        content.replies[key] = [*earlier_replies, *(_Reply(tps, now) for tps in values)][-_MAX_REPLIES:]
    content.replies = dict(list(content.replies.items())[-_MAX_ENTRIES:])
    _save(content)


def may_remeasure() -> bool:
    """Return whether replies may trigger a run of the kernel benchmark now, which they may do once a day."""
    return not 0 <= time.time() - _read().remeasured_at < _REMEASUREMENT_INTERVAL_S


def record_remeasurement() -> None:
    """Save the current time as the time of a kernel benchmark run that was triggered by replies."""
    content = _read()
    content.remeasured_at = time.time()
    _save(content)


def _make_key(model_path: str, backend_key: str, work: Work, n_threads: int) -> str:
    return f"{make_file_key(model_path)} {backend_key} {work} {n_threads}"


def _file() -> JsonFile[_Content]:
    return JsonFile(
        paths.observed_speeds_file(), _Content, max_bytes=_MAX_FILE_BYTES, is_valid=lambda c: c.version == _VERSION
    )


def _read() -> _Content:
    return _file().read() or _Content()


def _save(content: _Content) -> None:
    content.version = _VERSION
    _file().save(content)
