"""All settings, from their own schema, with the same checks as the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import msgspec
from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat import config
from edgechat.config import Settings
from edgechat.errors import SettingsError
from edgechat.paths import config_file
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.tui.app import ChatApp


class SettingsScreen(ModalScreen[None]):
    """Each with its value and what it means; Enter changes one."""

    app: ChatApp
    DEFAULT_CSS = """
    SettingsScreen { background: $background 60%; align: center middle; }
    SettingsScreen > Vertical { width: 100%; max-width: 110; height: 100%; border: round $border; padding: 0 1; background: $surface; }
    SettingsScreen OptionList { height: 1fr; }
    SettingsScreen #words { height: auto; min-height: 2; border-top: solid $border-blurred; }
    SettingsScreen Input { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", id="settings.leave"),
        Binding("delete,backspace", "reset", "Back to the default", id="settings.reset"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._words = config.describe()
        self._editing = ""

    def compose(self) -> ComposeResult:
        """The list, what the chosen one means, and a line to change it."""
        with Vertical() as box:
            box.border_title = "Settings"
            box.border_subtitle = "Enter: change   Del: default   Esc: back"
            yield OptionList(markup=False)
            yield Static("", id="words", markup=False)
            yield Input(compact=True)

    def on_mount(self) -> None:
        """Show them."""
        self._fill()
        self.query_one(OptionList).highlighted = 0
        self.query_one(OptionList).focus()

    def _fill(self) -> None:
        options = self.query_one(OptionList)
        at = options.highlighted
        options.clear_options()
        default = Settings()
        for name in Settings.__struct_fields__:
            value = getattr(self.app.settings, name)
            line = Text(f"{name:<16} ", no_wrap=True, overflow="ellipsis")
            is_default = value == getattr(default, name)
            line.append(escape_controls(_shown(value)), style="dim" if is_default else "bold")
            options.add_option(Option(line, id=name))
        options.highlighted = at

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        self._say(self._words.get(message.option_id or "", ""))

    def _say(self, words: str) -> None:
        self.query_one("#words", Static).update(escape_controls(words))

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        name = message.option_id or ""
        value = getattr(self.app.settings, name)
        if config.setting_types()[name] is bool:
            self._save(name, not value)
        elif name == "theme":
            from edgechat.tui import themes

            self.app.pick("Themes", [(n, n) for n in themes.theme_names()], lambda chosen: self._save("theme", chosen))
        elif isinstance(value, dict):
            self._say(f"{self._words[name]}\nThis one is changed in {config_file()}")
        else:
            self._editing = name
            line = self.query_one(Input)
            line.value = "" if value is None else str(value)
            line.placeholder = f"{name}; empty: the default"
            line.display = True
            line.focus()

    @on(Input.Submitted)
    def _on_submitted(self, message: Input.Submitted) -> None:
        text = message.value.strip()
        self._save(self._editing, config.parse_value(self._editing, text) if text else None)

    def _save(self, name: str, value: object) -> None:
        """To the file, and in force at once where that is possible."""
        if value is not None and (wrong := config.check(name, value)):
            self._say(f"{name}: {wrong}")
            return
        try:
            config.save(name, value)
        except SettingsError as problem:
            self._say(str(problem))
            return
        shown = value if value is not None else getattr(Settings(), name)
        self.app.take_settings(msgspec.structs.replace(self.app.settings, **{name: shown}))
        self._close_line()
        self._fill()
        self._say(f"{name} is {_shown(shown)}, and kept in {config_file()}")

    def _close_line(self) -> None:
        self.query_one(Input).display = False
        self.query_one(OptionList).focus()

    def action_reset(self) -> None:
        """The default of the chosen one."""
        options = self.query_one(OptionList)
        if options.has_focus and options.highlighted is not None:
            self._save(options.get_option_at_index(options.highlighted).id or "", None)

    def action_leave(self) -> None:
        """Out of the line, or back."""
        if self.query_one(Input).display:
            self._close_line()
        else:
            self.dismiss()


def _shown(value: object) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "(none)"
    return str(value) if value != "" else "(empty)"
