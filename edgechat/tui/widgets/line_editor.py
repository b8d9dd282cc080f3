"""Text area with the keys of readline, and without Textual's own key bindings, so that all other keys are free."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.widgets import TextArea
from textual.widgets.text_area import TextAreaTheme

EDITING_KEYS: Final = {
    "left": "cursor_left", "right": "cursor_right", "home": "cursor_line_start", "end": "cursor_line_end",
    "shift+left": "cursor_left(True)", "shift+right": "cursor_right(True)",
    "shift+home": "cursor_line_start(True)", "shift+end": "cursor_line_end(True)",
    "ctrl+shift+left": "cursor_word_left(True)", "ctrl+shift+right": "cursor_word_right(True)",
    "delete": "delete_right",
}  # fmt: skip
"""Actions of keys that work in every text input; the help does not list them, and they cannot be remapped."""


# Textual reads the style of each part of its text area at every repaint. Defining the parts that this editor does not
# show, such as line numbers, in a theme halves the style sheet and the time to compute styles.
_THEME: Final = TextAreaTheme(
    "line-editor", gutter_style=Style.null(), cursor_line_style=Style.null(), cursor_line_gutter_style=Style.null(),
    bracket_matching_style=Style.null(),
)  # fmt: skip


class LineEditor(TextArea, inherit_bindings=False, inherit_css=False):
    """Text area with the keys of readline. Deleted text can be inserted again; every change can be undone."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "text-area--cursor", "text-area--selection", "text-area--placeholder",
    }  # fmt: skip
    DEFAULT_CSS = """
    LineEditor {
        width: 1fr; overflow: auto auto; color: $foreground; background: $surface; pointer: text;
        scrollbar-size: 1 1; scrollbar-color: $scrollbar; scrollbar-background: $scrollbar-background;
        .text-area--cursor {
            color: $input-cursor-foreground; background: $input-cursor-background; text-style: $input-cursor-text-style;
        }
        .text-area--selection { color: $input-selection-foreground; background: $input-selection-background; }
        .text-area--placeholder { color: $text 40%; }
        &:light .text-area--cursor { color: $text 90%; background: $foreground 70%; }
        &:ansi .text-area--cursor { text-style: reverse; }
        &:ansi .text-area--selection { background: transparent; text-style: reverse; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+a", "cursor_line_start", "Go to the start of the line", id="prompt.line_start", show=False),
        Binding("ctrl+e", "cursor_line_end", "Go to the end of the line", id="prompt.line_end", show=False),
        Binding("alt+b,ctrl+left", "cursor_word_left", "Go back a word", id="prompt.word_left", show=False),
        Binding("alt+f,ctrl+right", "cursor_word_right", "Go forward a word", id="prompt.word_right", show=False),
        Binding(
            "ctrl+w,alt+backspace,ctrl+backspace", "kill('delete_word_left')", "Delete the word before the cursor",
            id="prompt.kill_word_left", show=False,
        ),
        Binding(
            "alt+d,alt+delete", "kill('delete_word_right')", "Delete the word after the cursor",
            id="prompt.kill_word_right", show=False,
        ),
        Binding(
            "ctrl+u", "kill('delete_to_start_of_line')", "Delete to the start of the line",
            id="prompt.kill_line_start", show=False,
        ),
        Binding(
            "ctrl+k", "kill('delete_to_end_of_line')", "Delete to the end of the line", id="prompt.kill_line_end",
            show=False,
        ),
        Binding("ctrl+y", "yank", "Insert the last deleted text", id="prompt.yank", show=False),
        Binding("ctrl+underscore,ctrl+slash,super+z", "undo", "Undo", id="prompt.undo", show=False),
        Binding("alt+z,ctrl+shift+z", "redo", "Redo", id="prompt.redo", show=False),
        Binding("ctrl+x", "cut", "Cut the selection, or the line", id="prompt.cut", show=False),
        Binding("ctrl+v", "paste", "Insert the last text copied in the chat", id="prompt.paste", show=False),
    ]  # fmt: skip

    def __init__(self, **options: Any) -> None:
        """`options` are passed to Textual's `TextArea`."""
        super().__init__(**options)
        self.register_theme(_THEME)
        self.theme = _THEME.name
        self._killed_text = ""
        self._state_after_kill: tuple[str, tuple[int, int]] | None = None
        """Text and cursor after the last deletion; the next deletion extends it if nothing happened in between."""

    async def run_editing_key(self, key: str) -> bool:
        """Run the action of a key in `EDITING_KEYS`; return False for other keys."""
        action = EDITING_KEYS.get(key)
        if action is not None:
            await self.run_action(action)
        return action is not None

    @property
    def _cursor_index(self) -> int:
        row, column = self.cursor_location
        return sum(len(self.document.get_line(n)) + len(self.document.newline) for n in range(row)) + column

    def action_kill(self, name: str) -> None:
        """Delete text with the action `name`, and keep it for `action_yank`, as the kill commands of readline do."""
        text, cursor_index = self.text, self._cursor_index
        if self.selected_text:
            self._killed_text, self._state_after_kill = self.selected_text, None
            self.action_delete_left()
            return
        is_continued = self._state_after_kill == (text, self.cursor_location)
        getattr(self, f"action_{name}")()
        start = self._cursor_index
        killed = text[start : start + len(text) - len(self.text)]
        if killed:
            before = self._killed_text if is_continued else ""
            self._killed_text = killed + before if start < cursor_index else before + killed
            self._state_after_kill = self.text, self.cursor_location

    def action_yank(self) -> None:
        """Insert the text that was deleted last."""
        self.insert(self._killed_text)
