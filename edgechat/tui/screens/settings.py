"""The settings screen: all settings with their values and descriptions; new values are validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import msgspec
from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat import config
from edgechat.config import Settings
from edgechat.errors import SettingsError
from edgechat.paths import config_file
from edgechat.terminal import escape_controls
from edgechat.tui.screens.modal import Modal

if TYPE_CHECKING:
    from textual.app import ComposeResult


class SettingsScreen(Modal[None]):
    """List of all settings. Enter changes the highlighted setting in the settings file and in the running chat."""

    DEFAULT_CSS = """
    SettingsScreen { background: $background 60%; align: center middle; }
    SettingsScreen > Vertical {
        width: 100%; max-width: 110; height: 100%;
        border: round $border; padding: 0 1; background: $surface;
    }
    SettingsScreen OptionList { height: 1fr; }
    SettingsScreen #words { height: auto; min-height: 2; border-top: solid $border-blurred; }
    SettingsScreen Input { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="settings.leave"),
        Binding("delete,backspace", "reset", "Reset to the default", id="settings.reset"),
    ]

    def __init__(self, settings: Settings, on_changed: Callable[[Settings], None]) -> None:
        """`on_changed` is called with the new settings after each change."""
        super().__init__()
        self._settings = settings
        self._on_changed = on_changed
        self._descriptions = config.describe_settings()
        self._edited_name = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Settings"
            box.border_subtitle = "Enter: change   Del: default   Esc: close"
            yield OptionList(markup=False)
            yield Static("", id="words", markup=False)
            yield Input(compact=True)

    def on_mount(self) -> None:
        self._fill_list()
        self.query_one(OptionList).highlighted = 0
        self.query_one(OptionList).focus()

    def _fill_list(self) -> None:
        options = self.query_one(OptionList)
        index = options.highlighted
        options.clear_options()
        defaults = Settings()
        name_width = max(len(name) for name in Settings.__struct_fields__)
        for name in Settings.__struct_fields__:
            value = getattr(self._settings, name)
            row = Text(f"{name:<{name_width}} ", no_wrap=True, overflow="ellipsis")
            is_default = value == getattr(defaults, name)
            row.append(escape_controls(_format_value(value)), style="dim" if is_default else "bold")
            options.add_option(Option(row, id=name))
        options.highlighted = index

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        self._show_text(self._descriptions.get(message.option_id or "", ""))

    def _show_text(self, text: str) -> None:
        self.query_one("#words", Static).update(escape_controls(text))

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        name = message.option_id or ""
        value = getattr(self._settings, name)
        if config.setting_types()[name] is bool:
            self._save(name, not value)
        elif name == "theme":
            from edgechat.tui import themes
            from edgechat.tui.screens.picker import pick

            pick(self.app, "Themes", [(n, n) for n in themes.theme_names()], lambda theme: self._save("theme", theme))
        elif isinstance(value, dict):
            self._show_text(f"{self._descriptions[name]}\nChange this setting in {config_file()}")
        else:
            self._edited_name = name
            value_input = self.query_one(Input)
            value_input.value = "" if value is None else str(value)
            value_input.placeholder = f"{name} (empty: default)"
            value_input.display = True
            value_input.focus()

    @on(Input.Submitted)
    def _on_submitted(self, message: Input.Submitted) -> None:
        text = message.value.strip()
        self._save(self._edited_name, config.parse_value(self._edited_name, text) if text else None)

    def _save(self, name: str, value: object) -> None:
        """Save a setting to the file and apply it to the running chat; the value None restores the default."""
        if value is not None and (problem := config.check(name, value)):
            self._show_text(f"{name} {problem}")
            return
        try:
            config.save(name, value)
        except SettingsError as error:
            self._show_text(str(error))
            return
        value = value if value is not None else getattr(Settings(), name)
        self._settings = msgspec.structs.replace(self._settings, **{name: value})
        self._on_changed(self._settings)
        self._close_input()
        self._fill_list()
        self._show_text(f"{name} = {_format_value(value)}, saved to {config_file()}")

    def _close_input(self) -> None:
        self.query_one(Input).display = False
        self.query_one(OptionList).focus()

    def action_reset(self) -> None:
        """Reset the highlighted setting to its default."""
        options = self.query_one(OptionList)
        if options.has_focus and options.highlighted is not None:
            self._save(options.get_option_at_index(options.highlighted).id or "", None)

    def action_leave(self) -> None:
        """Close the value input if it is open, otherwise the screen."""
        if self.query_one(Input).display:
            self._close_input()
        else:
            self.dismiss()


def _format_value(value: object) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "(none)"
    return str(value) if value != "" else "(empty)"
