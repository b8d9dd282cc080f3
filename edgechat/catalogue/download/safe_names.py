"""Validation of file names from servers before their use as local paths."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME_BYTES: Final = 200
"""Maximum length of a file or folder name. File systems allow 255 bytes, and downloads append suffixes."""
MAX_DEPTH: Final = 8
_FORBIDDEN_CHARACTERS: Final = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\]')
# Reserved device names of Windows, which are invalid with any extension.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?", re.IGNORECASE)


def is_safe_path(path: str) -> bool:
    """Return whether a relative path stays inside its directory and is valid on every operating system."""
    parts = path.split("/")
    return len(parts) <= MAX_DEPTH and all(map(_is_safe_name, parts))


def _is_safe_name(name: str) -> bool:
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and not name.startswith((".", "-", " ", "~"))
        and not name.endswith((".", " "))
        and _FORBIDDEN_CHARACTERS.search(name) is None
        and _DEVICE.fullmatch(name) is None
        and name.isprintable()
    )
