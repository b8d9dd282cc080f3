"""Labels of keys, as the help and the footer show them."""

from __future__ import annotations

from typing import Final

_KEY_NAMES: Final = {"escape": "Esc", "pageup": "PgUp", "pagedown": "PgDn", "slash": "/", "delete": "Del"}


def format_key(key: str) -> str:
    """Return the label of a key, such as "Ctrl+O" for "ctrl+o"."""
    *modifiers, base_key = key.split("+")
    name = _KEY_NAMES.get(base_key) or (
        base_key.capitalize() if len(base_key) > 1 else base_key.upper() if modifiers else base_key
    )
    return "+".join([*(m.capitalize() for m in modifiers), name])
