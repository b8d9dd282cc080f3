"""What programs of ours that run at this moment have loaded: a file each, believed only while its process lives."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.memory import private_bytes, process_started_at

_MAX_BYTES = 1 << 16
_SAME_S = 2.0


class RunningInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded."""

    pid: int
    """Of the engine."""
    started_at: float = msgspec.field(name="started_s")
    """When that process started; another one may get its number."""
    model_path: str
    total_bytes: int
    """What was planned for it, mapped weights among it."""

    @property
    def held_bytes(self) -> int:
        """What it has or will have, beyond what the system already counts as taken: mapped pages, and what comes yet."""
        return max(0, self.total_bytes - private_bytes(self.pid))


def announce(pid: int, model_path: str, total_bytes: int) -> None:
    """Say that an engine has a model. A cache directory that cannot be written makes no difference."""
    value = RunningInstance(pid=pid, started_at=process_started_at(pid), model_path=model_path, total_bytes=total_bytes)
    _file(_path(pid)).save(value)


def withdraw(pid: int) -> None:
    """Take that back."""
    with contextlib.suppress(OSError):
        _path(pid).unlink()


def others(own_pid: int | None = None) -> list[RunningInstance]:
    """Models that other programs of ours have loaded; what dead ones left behind is cleared away."""
    found = []
    for file in sorted(paths.instances_dir().glob("*.json")):
        value = _file(file).read()
        started = process_started_at(value.pid) if value is not None else 0.0
        if value is None or not started:
            with contextlib.suppress(OSError):
                file.unlink()
        # Another time is another process, or a clock that was set: neither is reason enough to delete anything.
        elif abs(started - value.started_at) < _SAME_S and value.pid not in {own_pid, os.getpid()}:
            found.append(value)
    return found


def _path(pid: int) -> Path:
    return paths.instances_dir() / f"{pid}.json"


def _file(path: Path) -> JsonFile[RunningInstance]:
    return JsonFile(path, RunningInstance, max_bytes=_MAX_BYTES)
