"""Base class of the application: colours and characters that suit the settings and the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edgechat.tui import terminal_traits, textual_private, themes
from edgechat.tui.readable_text import ReadableText
from edgechat.tui.type_ahead import TypeAheadApp

if TYPE_CHECKING:
    from textual import events
    from textual.filter import LineFilter

    from edgechat.config import Settings
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.terminal_traits import BackgroundReported

_QUERY_ROW: Final = 1
"""Row, from 0, of the character that shows whether the terminal decodes UTF-8."""


class ThemedApp(TypeAheadApp[int]):
    """Application with a theme, which can follow the terminal's background, and with ASCII drawing where needed.

    The application queries the terminal at the start. Until the terminal answers, the automatic theme is dark, and the
    charset of the locale decides whether only ASCII is drawn.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self._palette: Palette | None = None
        self._is_background_light = False
        self._awaits_background = False
        self._decodes_utf8 = terminal_traits.has_utf8_locale(os.environ)
        self._readable_text = ReadableText(lambda: self.console.color_system)

    @property
    def palette(self) -> Palette:
        """Text styles and glyphs of the transcript in the current theme."""
        if self._palette is None:
            from edgechat.tui.render.palette import Palette

            theme = self.current_theme
            self._palette = Palette(
                self.get_css_variables(), dark=theme.dark, ansi=theme.ansi, ascii_only=self.draws_ascii
            )
        return self._palette

    def get_css_variables(self) -> dict[str, str]:
        """Return the variables of the theme, with colours of selected text and scrollbars that suit this terminal."""
        return themes.add_own_colours(super().get_css_variables(), self.current_theme, self.console.color_system)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return Textual's filters, and one that makes text readable, unless the theme has the terminal's colours."""
        filters = super().get_line_filters()
        return filters if self.current_theme.ansi else [*filters, self._readable_text]

    def apply_theme(self, name: str) -> list[str]:
        """Switch to a theme; if it is unknown or invalid, switch to the default theme and return the problem."""
        if name == themes.AUTO:
            name = themes.LIGHT_THEME if self._is_background_light else themes.DEFAULT_THEME
        if name == self.theme:
            return []
        theme, problem = themes.find_theme(name)
        self.register_theme(theme)
        self.theme = theme.name
        return [problem] if problem else []

    # ASCII

    @property
    def draws_ascii(self) -> bool:
        """True if only ASCII characters are used for drawing."""
        return self.settings.ascii if self.settings.ascii is not None else not (self._decodes_utf8 or self.is_headless)

    def update_ascii(self) -> None:
        """Update whether only ASCII is drawn, after a change of the settings or an answer of the terminal."""
        textual_private.restrict_output(self, ascii_only=not (self._decodes_utf8 or self.is_headless))
        if self.draws_ascii != self.has_class("ascii"):
            self.set_class(self.draws_ascii, "ascii")
            self.redraw()

    def redraw(self) -> None:
        """Lay out all text again, after a change of colours or characters."""
        self._palette = None

    # The terminal's answers

    def ask_terminal(self) -> None:
        """Query the terminal's background if the theme follows it, and its charset if the locale is not UTF-8."""
        if self.settings.theme == themes.AUTO:
            query = terminal_traits.make_background_query(os.environ)
            self._awaits_background = textual_private.write_to_terminal(self, query)
        if not self._decodes_utf8 and not self.is_headless:
            textual_private.write_below_frame(self, terminal_traits.make_utf8_query(_QUERY_ROW))

    def on_background_reported(self, message: BackgroundReported) -> None:
        """Follow the background of the terminal; ignore unrequested reports."""
        if self._awaits_background:
            self._awaits_background = False
            self._is_background_light = message.is_light
            if self.settings.theme == themes.AUTO:
                self.apply_theme(themes.AUTO)

    def on_cursor_position(self, event: events.CursorPosition) -> None:
        """Allow characters outside of ASCII if the terminal has shown the test character of two bytes in one column."""
        if event.y == _QUERY_ROW and event.x == 1 and not self._decodes_utf8:
            self._decodes_utf8 = True
            self.update_ascii()
