"""The settings screen: all settings with their values and descriptions; new values are chosen or typed, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static

from edgechat import config
from edgechat.config import Settings
from edgechat.errors import SettingsError
from edgechat.paths import config_file
from edgechat.terminal import escape_controls
from edgechat.tui.row_text import contains_words
from edgechat.tui.screens import setting_rows
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.screens.picker import pick
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

_FLAGS: Final = {"yes": True, "no": False}
_SCOPE: Final = "Defaults of all conversations; /set NAME VALUE changes only the open one."
# ID of the option in the list of models that lets the user type a name.
_OTHER_MODEL: Final = ""
_AUTO_LABEL: Final = "auto  (the best installed model that fits and is fast enough)"
_DRAFTER_LABELS: Final = {
    config.AUTO: "auto  (own heads, installed heads, or a small model)",
    config.OFF: "off  (drafts from repeated text only)",
}  # fmt: skip


class SettingsScreen(FilterListScreen[None]):
    """List of all settings. Enter changes the highlighted setting in the settings file and in the running chat."""

    DEFAULT_CSS = """
    SettingsScreen > Vertical { max-width: 110; }
    SettingsScreen #scope { color: $list-quiet; }
    SettingsScreen #words { height: auto; min-height: 2; border-top: solid $border-blurred; }
    SettingsScreen #notice { height: auto; color: $text-accent; }
    SettingsScreen #notice.error { color: $text-error; }
    SettingsScreen #value { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete", "reset", "Reset to the default", id="settings.reset", priority=True),
    ]

    def __init__(
        self,
        settings: Settings,
        on_changed: Callable[[Settings], None],
        preview_theme: Callable[[str], object],
        name: str = "",
    ) -> None:
        """`on_changed` is called with the new settings after each change.

        `preview_theme` is called with each theme that the user highlights in the list of themes. `name` is the setting
        that is highlighted at the start.
        """
        super().__init__()
        self._settings = settings
        self._on_changed = on_changed
        self._preview_theme = preview_theme
        self._descriptions = config.describe_settings()
        self._first_name = name
        self._edited_name = ""
        self._notice_name = ""
        """Name of the setting to which the notice belongs; it disappears when another setting is highlighted."""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Settings"
            labels = {"enter": "change", "settings.reset": "default", "listing.leave": "close"}
            box.border_subtitle = self.format_keys(labels)
            yield FilterInput(placeholder="Filter by name or description")
            yield Static(_SCOPE, id="scope")
            yield EntryList(markup=False)
            yield Static("", id="words", markup=False)
            yield Static("", id="notice", markup=False)
            yield FilterInput(placeholder="", id="value")

    def on_mount(self) -> None:
        self._fill_list(self._first_name)

    @on(EntryList.WidthChanged)
    def _on_width_changed(self) -> None:
        self._fill_list(self.highlighted_id or self._first_name)

    @property
    def _value_input(self) -> Input:
        return self.query_one("#value", Input)

    @on(Input.Changed)
    def _on_changed_text(self, message: Input.Changed) -> None:
        if message.input is not self._value_input:
            self._fill_list()

    def _fill_list(self, highlighted_name: str = "") -> None:
        """Show the settings that match the filter, and highlight `highlighted_name`, or else the first setting."""
        options, query, names = self.options, self.filter_text.strip(), self._find_names()
        rows = list(setting_rows.list_rows(names, self._settings, self.list_width, with_headings=not query))
        options.clear_options()
        options.add_options(rows)
        ids = [option.id for option in rows]
        if names:
            first_index = next(index for index, option in enumerate(rows) if not option.disabled)
            options.highlighted = ids.index(highlighted_name) if highlighted_name in ids else first_index
        else:
            self._show_description("No setting matches the filter.")

    def _find_names(self) -> list[str]:
        """Return the settings that match the filter, those with a matching name first."""
        query, shown_labels = self.filter_text, setting_rows.LABELS
        labels = {n: f"{n} {n.replace('_', ' ')} {label}" for n, label in shown_labels.items()}
        names = [n for n, label in labels.items() if contains_words(f"{label} {self._descriptions[n]}", query)]
        return sorted(names, key=lambda name: not contains_words(labels[name], query))

    @property
    def _highlighted_name(self) -> str:
        option = self.options.highlighted_option
        return (option.id or "") if option is not None else ""

    # Texts

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        name = message.option_id or ""
        self._show_description(self._descriptions.get(name, ""))
        if name != self._notice_name:
            self._show_notice("", name)

    def _show_description(self, text: str) -> None:
        self.query_one("#words", Static).update(escape_controls(text))

    def _show_notice(self, text: str, name: str, *, is_error: bool = False) -> None:
        """Show `text` below the description until a setting other than `name` is highlighted."""
        self._notice_name = name
        notice = self.query_one("#notice", Static)
        notice.set_class(is_error, "error")
        notice.update(escape_controls(text))

    # Changes

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if option_id is None:
            return
        name, value = option_id, getattr(self._settings, option_id)
        setting_type = config.setting_types()[name]
        if setting_type is bool:
            self._save(name, not value)
        elif setting_type == bool | None:
            options = [(text, text) for text in ("default", *_FLAGS)]
            current = "default" if value is None else setting_rows.format_value(value)
            pick(self.app, name, options, lambda text: self._save(name, _FLAGS.get(text)), current=current)
        elif name == "theme":
            self._choose_theme(value)
        elif name == "model":
            self._choose_model()
        elif name == "draft_model":
            self._choose_drafter()
        elif name == "remotes":
            self._show_notice("`edgechat remotes` adds, tests and removes servers.", name)
        elif name == "route":
            self._show_notice(f"Change the table [route] in {config_file()}; /model route uses it.", name)
        elif isinstance(value, dict):
            help_key = self.key_label("chat.help")
            self._show_notice(f"Change this table in {config_file()}. {help_key} lists the actions.", name)
        else:
            self._edit_value(name)

    def _choose_theme(self, current: str) -> None:
        from edgechat.tui.themes import list_theme_labels

        def save(name: str) -> None:
            self._save("theme", name)

        pick(self.app, "Themes", list_theme_labels(), save, current=current, on_highlighted=self._preview_theme)

    def _show_model_problem(self, text: str) -> None:
        self._show_notice(text, "model", is_error=True)

    @thread_worker(_show_model_problem, group="models")
    def _choose_model(self) -> None:
        """Find the installed models in a thread, because this can take time, and let the user choose one."""
        from edgechat.catalogue import library

        names = [entry.name for entry in library.scan() if entry.is_usable and entry.facts.kind == "model"]
        if self._settings.remotes:
            from edgechat.remote.model_lists import list_names

            names += list_names(self._settings.remotes)
        labels = {config.AUTO: _AUTO_LABEL} | {name: name for name in names}
        self.app.call_from_thread(self._show_models, "model", "Models", labels)

    def _show_drafter_problem(self, text: str) -> None:
        self._show_notice(text, "draft_model", is_error=True)

    @thread_worker(_show_drafter_problem, group="models")
    def _choose_drafter(self) -> None:
        """Find the installed models and heads that can draft in a thread, and let the user choose one."""
        from edgechat.catalogue import library

        labels = _DRAFTER_LABELS | {entry.name: entry.name for entry in library.scan() if entry.may_draft}
        self.app.call_from_thread(self._show_models, "draft_model", "Draft models and heads", labels)

    def _show_models(self, setting: str, title: str, labels: Mapping[str, str]) -> None:
        def save(name: str) -> None:
            self._edit_value(setting) if name == _OTHER_MODEL else self._save(setting, name)

        if self.is_current:
            options = [*labels.items(), (_OTHER_MODEL, "Type a name or a file ...")]
            pick(self.app, title, options, save, current=getattr(self._settings, setting))

    def _edit_value(self, name: str) -> None:
        self._edited_name = name
        value, value_input = getattr(self._settings, name), self._value_input
        value_input.value = ", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        value_input.placeholder = f"{config.describe_valid_values(name).capitalize()}; empty: default"
        value_input.display = True
        value_input.focus()
        self._show_notice(f"{name}: {config.describe_valid_values(name)}; empty: default", name)

    @on(Input.Submitted, "#value")
    def _on_value_submitted(self, message: Input.Submitted) -> None:
        message.stop()
        message.prevent_default()
        text = message.value.strip()
        self._save(self._edited_name, config.parse_value(self._edited_name, text) if text else None)

    def _save(self, name: str, value: object) -> None:
        """Save a setting to the file and apply it to the running chat; the value None restores the default."""
        try:
            config.save(name, value)
        except SettingsError as error:
            self._preview_theme(self._settings.theme)  # removes the preview of another theme
            self._show_notice(str(error), name, is_error=True)
            return
        value = value if value is not None else getattr(Settings(), name)
        self._settings = msgspec.structs.replace(self._settings, **{name: value})
        self._on_changed(self._settings)
        self._close_value_input()
        self._fill_list(name)
        suffix = "; used when a model is loaded next" if name in config.LOAD_SETTINGS else ""
        self._show_notice(f"{name} = {setting_rows.format_value(value)}, saved to {config_file()}{suffix}", name)

    def _close_value_input(self) -> None:
        if self._value_input.display:
            self._value_input.display = False
            self.query_one(Input).focus()

    # Keys

    def action_move(self, step: int) -> None:
        if not self._value_input.display:
            super().action_move(step)

    def action_reset(self) -> None:
        """Reset the highlighted setting to its default; in an input with text after the cursor, delete text instead."""
        text_input = self.focused
        if isinstance(text_input, Input) and (
            text_input is self._value_input or text_input.cursor_position < len(text_input.value)
        ):
            text_input.action_delete_right()
        elif self._highlighted_name:
            self._save(self._highlighted_name, None)

    def action_leave(self) -> None:
        """Close the value input if it is open, otherwise the screen."""
        if self._value_input.display:
            self._close_value_input()
            self._show_notice("", self._edited_name)
        else:
            self.dismiss()
