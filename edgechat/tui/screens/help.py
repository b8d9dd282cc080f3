"""The help screen: key bindings and slash commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgechat.chat.commands import COMMANDS
from edgechat.paths import config_file
from edgechat.tui.key_names import format_key
from edgechat.tui.screens.plan import TextScreen

if TYPE_CHECKING:
    from edgechat.tui.keys import KeyBinding

_GROUP_TITLES = {
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


class HelpScreen(TextScreen):
    """List of all key bindings with the configured keys, and of all slash commands."""

    def __init__(self, keys: Sequence[KeyBinding], overrides: Mapping[str, str]) -> None:
        """For bindings whose ID is in `overrides`, show the keys in `overrides` instead of the default keys."""
        super().__init__("Help", _format_help(keys, overrides))


def _format_help(keys: Sequence[KeyBinding], overrides: Mapping[str, str]) -> str:
    lines: list[str] = []
    for group, title in _GROUP_TITLES.items():
        lines += ["", title] if lines else [title]
        for key in keys:
            if key.id.partition(".")[0] == group:
                binding_keys = overrides.get(key.id) or key.keys
                lines.append(
                    f"  {', '.join(format_key(k) for k in binding_keys.split(',')):<22} {key.description}  [{key.id}]"
                )
    lines += ["", "Commands, typed in the input"]
    lines += [f"  {f'/{c.name} {c.argument}':<22} {c.description}" for c in COMMANDS]
    lines += [
        "", "@FILE in a message attaches a text file.", "",
        f'To change a key, add a line such as "chat.search" = "f7" to the table [keys] in {config_file()}.',
        "The name of each key is shown in brackets above.",
    ]  # fmt: skip
    return "\n".join(lines)
