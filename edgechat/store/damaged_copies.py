"""Names of the files to which damaged databases were moved. A marker file shows that a copy has been recovered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

_INFIX: Final = ".damaged-"
"""Text between the name of the database and the time of the recovery in the name of a damaged copy."""
_MARKER_SUFFIX: Final = ".recovered"
"""Suffix of the empty file that marks a damaged copy as recovered."""


def find_unrecovered_copies(path: Path) -> list[Path]:
    """Return the damaged copies of the database at `path` that are not marked as recovered, in order of their names."""
    return [
        copy for copy in sorted(path.parent.glob(f"{path.name}{_INFIX}*"))
        if not copy.name.endswith(("-wal", "-shm", "-journal", _MARKER_SUFFIX)) and not marker_file(copy).exists()
    ]  # fmt: skip


def marker_file(copy: Path) -> Path:
    """Return the path of the file that marks a damaged copy as recovered."""
    return copy.with_name(copy.name + _MARKER_SUFFIX)


def choose_copy_name(path: Path) -> Path:
    """Return an unused path to which the damaged database at `path` can be moved."""
    default_copy = path.with_name(f"{path.name}{_INFIX}{time.strftime('%Y%m%d-%H%M%S')}")
    copy, number = default_copy, 1
    while copy.exists():
        number += 1
        copy = default_copy.with_name(f"{default_copy.name}_{number}")
    return copy
