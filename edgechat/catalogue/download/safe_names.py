"""Validation of file names from servers before they become local paths."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME_BYTES: Final = 200
"""Maximum length of a path component. File systems allow 255 bytes, and downloads add suffixes."""
MAX_DEPTH: Final = 8
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\]')
# Reserved device names of Windows, which are invalid with any extension.
_DEVICES: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?", re.IGNORECASE)


def is_safe_path(path: str) -> bool:
    """Return True if a relative path cannot leave its directory and is valid on every operating system."""
    parts = path.split("/")
    return len(parts) <= MAX_DEPTH and all(map(_is_safe_name, parts))


def _is_safe_name(name: str) -> bool:
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and not name.startswith((".", "-", " ", "~"))
        and not name.endswith((".", " "))
        and _FORBIDDEN.search(name) is None
        and _DEVICES.fullmatch(name) is None
        and name.isprintable()
    )
