"""Records of the models that running edgechat processes have loaded, with one file per engine process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.memory import is_process_running, read_private_bytes, read_process_start_time

_MAX_BYTES: Final = 1 << 16
# Maximum difference, in seconds, between two readings of the start time of one process.
_START_TOLERANCE_S: Final = 2.0


class RunningInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the memory of a running engine process. The encoded field names are part of the file format."""

    pid: int
    """Process ID of the engine."""
    started_at: float = msgspec.field(name="started_s")
    """Start time of the process in seconds since 1970. A later process with the same ID has another start time."""
    model_path: str
    total_bytes: int
    """Planned memory of the engine process in bytes, including mapped weights."""
    mapped_bytes: int = 0
    """Part of `total_bytes` for weights that are mapped from the model file."""

    @property
    def reserved_bytes(self) -> int:
        """Planned bytes that the system still reports as available: mapped from the model file, or not used yet.

        A context that has grown can use more than the plan, but does not make the mapped weights available.
        """
        unmapped_bytes = self.total_bytes - self.mapped_bytes
        return self.mapped_bytes + max(0, unmapped_bytes - read_private_bytes(self.pid))


def register(pid: int, model_path: str, total_bytes: int, mapped_bytes: int = 0) -> None:
    """Save a record that the engine process `pid` has loaded a model. Ignores write errors."""
    instance = RunningInstance(
        pid=pid, started_at=read_process_start_time(pid), model_path=model_path, total_bytes=total_bytes,
        mapped_bytes=mapped_bytes,
    )  # fmt: skip
    _record_file(_record_path(pid)).save(instance)


def unregister(pid: int) -> None:
    """Delete the record of an engine process."""
    with contextlib.suppress(OSError):
        _record_path(pid).unlink()


def other_instances(own_pid: int | None = None) -> list[RunningInstance]:
    """Return the models of other edgechat processes, and delete the records of ended engine processes."""
    instances = []
    for path in sorted(paths.instances_dir().glob("*.json")):
        instance = _record_file(path).read()
        started_at = read_process_start_time(instance.pid) if instance is not None else 0.0
        if instance is None or not is_process_running(instance.pid):
            with contextlib.suppress(OSError):
                path.unlink()
        # A different start time means another process or a changed clock. After a clock change, the record is still
        # valid, so it is not deleted.
        elif abs(started_at - instance.started_at) < _START_TOLERANCE_S and instance.pid not in {own_pid, os.getpid()}:
            instances.append(instance)
    return instances


def _record_path(pid: int) -> Path:
    return paths.instances_dir() / f"{pid}.json"


def _record_file(path: Path) -> JsonFile[RunningInstance]:
    return JsonFile(path, RunningInstance, max_bytes=_MAX_BYTES)
