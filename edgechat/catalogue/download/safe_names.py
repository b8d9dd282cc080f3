"""Names that come from elsewhere and are to become names of files here."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME_BYTES: Final = 200
"""Of one part of a path: file systems allow 255, and we add to it."""
MAX_DEPTH: Final = 8
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\]')
_DEVICES: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?", re.IGNORECASE)


def safe_path(path: str) -> bool:
    """True if this relative path stays below where it is put, and is a plain file's name on every system."""
    parts = path.split("/")
    return len(parts) <= MAX_DEPTH and all(map(_is_safe, parts))


def _is_safe(name: str) -> bool:
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and not name.startswith((".", "-", " ", "~"))
        and not name.endswith((".", " "))
        and _FORBIDDEN.search(name) is None
        and _DEVICES.fullmatch(name) is None
        and name.isprintable()
    )
