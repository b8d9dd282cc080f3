"""Records of the models that running edgechat processes have loaded, with one file per engine process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.memory import private_bytes, process_started_at

_MAX_BYTES: Final = 1 << 16
# Maximum difference, in seconds, between two readings of the start time of one process.
_START_TOLERANCE_S: Final = 2.0


class RunningInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the memory of a running engine process. The encoded field names are the file format."""

    pid: int
    """Process id of the engine."""
    started_at: float = msgspec.field(name="started_s")
    """Start time of the process in seconds since 1970, which distinguishes it from a later process with the same id."""
    model_path: str
    total_bytes: int
    """Planned memory of the engine process, mapped weights included."""

    @property
    def reserved_bytes(self) -> int:
        """Memory of the process that the system still reports as available: mapped pages and pages not yet used."""
        return max(0, self.total_bytes - private_bytes(self.pid))


def announce(pid: int, model_path: str, total_bytes: int) -> None:
    """Record that the engine process `pid` has loaded a model, unless the cache directory cannot be written."""
    instance = RunningInstance(
        pid=pid, started_at=process_started_at(pid), model_path=model_path, total_bytes=total_bytes
    )
    _file(_path(pid)).save(instance)


def withdraw(pid: int) -> None:
    """Delete the record of an engine process."""
    with contextlib.suppress(OSError):
        _path(pid).unlink()


def other_instances(own_pid: int | None = None) -> list[RunningInstance]:
    """Return the models of other edgechat processes, and delete records of processes that have ended."""
    instances = []
    for path in sorted(paths.instances_dir().glob("*.json")):
        instance = _file(path).read()
        started_at = process_started_at(instance.pid) if instance is not None else 0.0
        if instance is None or not started_at:
            with contextlib.suppress(OSError):
                path.unlink()
        # A different start time means another process or a changed clock. The record is not deleted: it may be valid.
        elif abs(started_at - instance.started_at) < _START_TOLERANCE_S and instance.pid not in {own_pid, os.getpid()}:
            instances.append(instance)
    return instances


def _path(pid: int) -> Path:
    return paths.instances_dir() / f"{pid}.json"


def _file(path: Path) -> JsonFile[RunningInstance]:
    return JsonFile(path, RunningInstance, max_bytes=_MAX_BYTES)
