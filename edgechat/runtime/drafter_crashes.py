"""Records of model drafters with which the engine process died, so that they are not tried again with their target.

A record is valid for one version of edgechat, and for the names and sizes of both files. If it cannot be saved, this
process still remembers it.
"""

from __future__ import annotations

from typing import Final

import edgechat
from edgechat import paths
from edgechat.files import JsonFile, make_file_key
from edgechat.planner.drafter_plan import DrafterKind, DrafterPlan

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_RECORDS: Final = 200
_SEPARATOR: Final = "\0"

_unsaved_records: dict[str, str] = {}
"""Records of this process, which may not be in the file, for example because the disk was full."""


def record_crash(target_path: str, drafter: DrafterPlan, cause: str) -> None:
    """Record that the engine died with `cause`, a signal or an exit code, while it opened or used `drafter`."""
    key = _make_key(target_path, drafter.kind, drafter.model_path)
    records = _read_records()
    records.pop(key, None)
    _unsaved_records[key] = cause
    _open_file().save(dict([*records.items(), (key, cause)][-_MAX_RECORDS:]))


def find_crash(target_path: str, kind: DrafterKind, model_path: str = "") -> str:
    """Return the cause of the last crash with a drafter, such as `SIGSEGV (signal 11)`; "" if there was none.

    `model_path` is the path of its own file; "" for heads in the file of the target.
    """
    return _read_records().get(_make_key(target_path, kind, model_path), "")


def list_crashes(target_path: str) -> dict[str, str]:
    """Return the causes of crashes with a target by the file name of the drafter, or `MTP heads`."""
    start = _make_key(target_path, "", "").removesuffix(_SEPARATOR * 2)
    crashes = {}
    for key, cause in _read_records().items():
        if key.startswith(start + _SEPARATOR):
            draft_key = key.rpartition(_SEPARATOR)[2]
            name, _, size = draft_key.rpartition(" ")
            crashes[(name if name and size.isdigit() else draft_key) or "MTP heads"] = cause
    return crashes


def clear() -> None:
    """Delete all records, so that every drafter may be tried again."""
    _unsaved_records.clear()
    _open_file().save({})


def _make_key(target_path: str, kind: str, model_path: str) -> str:
    draft_key = make_file_key(model_path) if model_path else ""
    key = _SEPARATOR.join((edgechat.__version__, make_file_key(target_path), kind, draft_key))
    return key.encode("utf-8", "replace").decode()  # JSON cannot contain other bytes of a file name


def _open_file() -> JsonFile[dict[str, str]]:
    return JsonFile(paths.drafter_crashes_file(), dict[str, str], max_bytes=_MAX_FILE_BYTES)


def _read_records() -> dict[str, str]:
    return (_open_file().read() or {}) | _unsaved_records
