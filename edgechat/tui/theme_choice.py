"""The command `/theme`: choose a colour theme, and save the choice to the settings file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgechat import config
from edgechat.errors import UsageError
from edgechat.tui import themes
from edgechat.tui.screens.picker import pick

if TYPE_CHECKING:
    from edgechat.tui.app import ChatApp


def choose_theme(app: ChatApp, name: str) -> None:
    """Use and save the theme called `name`, or open a picker if `name` is empty. Raises UsageError, SettingsError."""
    if name:
        _save_theme(app, name)
        return
    options = [(n, f"{n}  (current)" if n == app.theme else n) for n in themes.theme_names()]
    pick(app, "Themes", options, lambda theme: app.actions.run("theme", theme))


def _save_theme(app: ChatApp, name: str) -> None:
    _, problem = themes.find_theme(name)
    if problem:
        raise UsageError(problem.removeprefix("theme: ").capitalize())
    config.save("theme", name)
    app.apply_settings(msgspec.structs.replace(app.settings, theme=name))
    app.notify(f"Theme: {name}, saved to the settings")
