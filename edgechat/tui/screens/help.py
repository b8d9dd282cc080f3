"""The help screen: keys and commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgechat.chat.commands import COMMANDS
from edgechat.paths import config_file
from edgechat.tui.screens.plan import TextScreen

if TYPE_CHECKING:
    from edgechat.tui.keys import KeyBinding

_TITLES = {
    "app": "Everywhere",
    "chat": "In the chat",
    "prompt": "In the input",
    "transcript": "In the conversation (press Esc)",
    "message": "On the message under the cursor",
    "list": "In the list of conversations",
    "listing": "In other lists",
    "models": "In the list of models",
    "settings": "In the settings",
    "text": "In help and the plan",
    "first": "At the first start",
}
_KEY_NAMES = {"escape": "Esc", "pageup": "PgUp", "pagedown": "PgDn", "slash": "/", "delete": "Del"}


class HelpScreen(TextScreen):
    """Lists all key bindings with their current keys, and all commands."""

    def __init__(self, keys: Sequence[KeyBinding], overrides: Mapping[str, str]) -> None:
        """Show `overrides`, keys by the id of their binding, instead of the default keys."""
        super().__init__("Help", _help_text(keys, overrides))


def _help_text(keys: Sequence[KeyBinding], overrides: Mapping[str, str]) -> str:
    lines: list[str] = []
    for group, title in _TITLES.items():
        lines += ["", title] if lines else [title]
        for key in keys:
            if key.id.partition(".")[0] == group:
                mapped = overrides.get(key.id) or key.keys
                lines.append(
                    f"  {', '.join(key_label(k) for k in mapped.split(',')):<22} {key.description}  [{key.id}]"
                )
    lines += ["", "Commands, typed in the input"]
    lines += [f"  {f'/{c.name} {c.argument}':<22} {c.summary}" for c in COMMANDS]
    lines += [
        "", "@FILE in a message attaches a text file.", "",
        f"To change keys, add a table [keys] to {config_file()}: each name in brackets, and its new keys.",
    ]  # fmt: skip
    return "\n".join(lines)


def key_label(key: str) -> str:
    """Return a key as it is written on keyboards: "Ctrl+O" for "ctrl+o"."""
    *modifiers, last = key.split("+")
    name = _KEY_NAMES.get(last) or (last.capitalize() if len(last) > 1 else last.upper() if modifiers else last)
    return "+".join([*(m.capitalize() for m in modifiers), name])
