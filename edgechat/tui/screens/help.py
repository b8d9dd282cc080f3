"""Keys and commands, as they are now."""

from __future__ import annotations

from edgechat.chat.commands import COMMANDS
from edgechat.paths import config_file
from edgechat.tui.screens.plan import TextScreen

_TITLES = {
    "app": "Everywhere", "chat": "In the chat", "prompt": "In the input", "transcript": "In the conversation (Esc leads there)",
    "message": "Of the message with the cursor, there", "list": "In the list of conversations",
    "listing": "In other lists", "models": "Among the models", "settings": "Among the settings", "text": "In help and the plan",
    "first": "At the first start",
}  # fmt: skip


_NAMES = {"escape": "Esc", "pageup": "PgUp", "pagedown": "PgDn", "slash": "/", "delete": "Del"}


class HelpScreen(TextScreen):
    """Made from the bindings and the commands themselves."""

    HEADING = "Help"

    def text(self) -> str:
        """All of it."""
        lines: list[str] = []
        known = self.app.all_keys()
        for place, title in _TITLES.items():
            lines += ["", title] if lines else [title]
            for key in known:
                if key.id.partition(".")[0] == place:
                    now = self.app.key_overrides.get(key.id) or key.keys
                    lines.append(f"  {', '.join(shown(k) for k in now.split(',')):<22} {key.description}  [{key.id}]")
        lines += ["", "Commands, in the place of a message"]
        lines += [f"  {f'/{c.name} {c.argument}':<22} {c.summary}" for c in COMMANDS]
        lines += [
            "", "@FILE in a message sends a text file along.", "",
            f"Other keys: a table [keys] in {config_file()}, from what stands in brackets to keys.",
        ]  # fmt: skip
        return "\n".join(lines)


def shown(key: str) -> str:
    """A key as it is written on keyboards."""
    *held, last = key.split("+")
    name = _NAMES.get(last) or (last.capitalize() if len(last) > 1 else last.upper() if held else last)
    return "+".join([*(h.capitalize() for h in held), name])
