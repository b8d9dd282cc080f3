"""The help screen: key bindings and slash commands by topic, with a filter."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input
from textual.widgets.option_list import Option

from edgechat.chat.commands import COMMANDS
from edgechat.paths import config_file
from edgechat.terminal import escape_controls
from edgechat.tui.help_topics import TOPICS
from edgechat.tui.key_names import format_key
from edgechat.tui.row_text import contains_words
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.tui.keys import KeyBinding

# Width of the column of keys on narrow and wide screens, and minimum width of the column of descriptions.
_KEY_COLUMNS: Final = 22
_WIDE_KEY_COLUMNS: Final = 30
_WIDE_COLUMNS: Final = 90
_MIN_COLUMNS: Final = 20


class _Row(NamedTuple):
    """Row of the help: a key binding or a slash command."""

    key: str
    """Keys or command, as the user types them."""
    description: str
    name: str = ""
    """Name of the key binding in the settings; "" for a command."""
    command: str = ""
    """Name of the slash command; "" for a key binding."""


class HelpScreen(FilterListScreen[str | None]):
    """List of all keys and slash commands. Its result is the name of the chosen command, or None after Esc."""

    DEFAULT_CSS = """
    HelpScreen > Vertical { max-width: 100; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "toggle_names", "Show the names of the keys, to change them", id="help.names"),
    ]

    def __init__(self, keys: Sequence[KeyBinding], overrides: Mapping[str, str]) -> None:
        """For bindings whose ID is in `overrides`, show the keys in `overrides` instead of the default keys."""
        super().__init__()
        self._keys = {key.id: key._replace(keys=overrides.get(key.id) or key.keys) for key in keys}
        self._shows_names = False
        self._shown_state: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Help"
            box.border_subtitle = self.format_keys(
                {"enter": "use a command", "help.names": "names of keys", "listing.leave": "close"}
            )
            yield FilterInput(placeholder="What do you want to do? Type words to filter")
            yield EntryList(markup=False)

    def action_toggle_names(self) -> None:
        self._shows_names = not self._shows_names
        self._fill_list()

    @on(Input.Changed)
    @on(EntryList.WidthChanged)
    def _fill_list(self) -> None:
        options, width = self.options, self.options.size.width
        state = (self.filter_text, width, self._shows_names)
        if state == self._shown_state:
            return
        self._shown_state = state
        options.clear_options()
        options.add_options(self._format_rows(width))
        options.highlighted = None
        options.action_first()

    def _format_rows(self, width: int) -> Iterator[Option]:
        """Yield the options that match the filter, with keys and descriptions wrapped to `width` columns."""
        n_key_columns = _WIDE_KEY_COLUMNS if width >= _WIDE_COLUMNS else _KEY_COLUMNS
        n_columns = max(width - 2 - n_key_columns, _MIN_COLUMNS)
        for i, (title, rows) in enumerate(self._list_topics()):
            yield Option(Text("\n" * (i > 0) + title, "bold"), disabled=True)
            for row in rows:
                description = f"{row.description}  [{row.name}]" if self._shows_names and row.name else row.description
                cells = textwrap.wrap(row.key, n_key_columns - 2), textwrap.wrap(description, n_columns)
                lines = [f"  {key:<{n_key_columns}}{text}" for key, text in zip_longest(*cells, fillvalue="")]
                yield Option(Text("\n".join(lines)), id=row.command or None)
        if self._shows_names:
            line = f'To change a key, add a line such as "chat.search" = "f7" to the table [keys] in {config_file()}.'
            yield Option(Text(escape_controls(textwrap.fill(line, n_columns + n_key_columns))), disabled=True)

    def _list_topics(self) -> Iterator[tuple[str, list[_Row]]]:
        """Yield the title and the rows of each topic with rows that contain all words of the filter."""
        commands = {command.name: command for command in COMMANDS}
        for topic in TOPICS:
            rows = [
                _Row(", ".join(map(format_key, key.keys.split(","))), key.description, key.id)
                for key in (self._keys[name] for name in topic.bindings if name in self._keys)
            ]
            if not self._shows_names:  # several parts of the screen may have the same key
                rows = list({(row.key, row.description): row for row in rows}.values())
            rows += [
                _Row(f"/{name} {commands[name].argument}".rstrip(), commands[name].description, command=name)
                for name in topic.commands
            ]
            matches = [
                row for row in rows
                if contains_words(f"{topic.title} {row.key} {row.description} {row.name}", self.filter_text)
            ]  # fmt: skip
            if matches:
                yield topic.title, matches

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if option_id is not None:
            self.dismiss(option_id)
