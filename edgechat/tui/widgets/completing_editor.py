"""Text input with completions of commands, arguments and file names in a list above the input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from textual import on
from textual.message import Message
from textual.widgets import TextArea

from edgechat.tui.widgets.line_editor import LineEditor
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.widgets import OptionList

    from edgechat.tui.completion import Completion

# Maximum length of the input for which completions are computed.
_MAX_CHARS: Final = 8192


class CompletingEditor(LineEditor):
    """Line editor that offers completions for the text before the cursor while it has the focus."""

    class CompletionsReady(Message):
        """The worker thread found completions for the text before the cursor."""

        def __init__(self, text_before: str, completions: list[Completion]) -> None:
            super().__init__()
            self.text_before = text_before
            self.completions = completions

    class CompletionsToggled(Message):
        """The list of completions was opened or closed."""

    def __init__(self, **options: Any) -> None:
        """`options` are passed to Textual's `TextArea`."""
        super().__init__(**options)
        self._completions: list[Completion] = []
        self._completion_text = ""
        """Text before the cursor for which `_completions` were computed."""
        self.popup_closed_at = 0.0
        """Time at which Esc last closed the list of completions."""
        self._popup: OptionList | None = None
        """List of completions; None until it is shown for the first time."""

    @property
    def shows_completions(self) -> bool:
        """True while the list of completions is open."""
        return self._popup is not None and self._popup.display

    def replace_and_move(self, text: str, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Replace a range of the document and put the cursor after the new text."""
        result = self.replace(text, start, end, maintain_selection_offset=False)
        self.move_cursor(result.end_location)

    @property
    def _text_before_cursor(self) -> str:
        """The text before the cursor; empty if the prompt is too long for completion."""
        return self.get_text_range((0, 0), self.cursor_location) if len(self.text) <= _MAX_CHARS else ""

    @on(TextArea.Changed)
    @on(TextArea.SelectionChanged)
    def _update_completion(self) -> None:
        from edgechat.tui import completion

        text_before = self._text_before_cursor
        if self.has_focus and completion.can_complete(text_before):
            self._find_completions(text_before)
        else:
            self._set_list_open(is_open=False)

    def _show_completion_error(self, text: str) -> None:
        self.app.notify(f"Cannot complete this text: {text}", severity="error")

    @thread_worker(_show_completion_error, group="completion")
    def _find_completions(self, text_before: str) -> None:
        from edgechat.tui import completion

        # A relative path also works if the current folder was deleted.
        self.post_message(self.CompletionsReady(text_before, completion.complete(text_before, Path())))

    def on_completing_editor_completions_ready(self, message: CompletionsReady) -> None:
        """Show the completions, unless the text before the cursor has changed since they were requested."""
        from edgechat.tui.widgets.completion_popup import CompletionPopup, make_completion_option

        if message.text_before != self._text_before_cursor or not self.is_attached:
            return
        completions = message.completions
        if len(completions) == 1 and message.text_before.endswith(completions[0].text.strip()):
            completions = []  # the only completion is already typed in full
        self._completions, self._completion_text = completions, message.text_before
        popup = self._popup
        if popup is None:
            self._popup = popup = CompletionPopup(self.accept_completion)
            self.screen.mount(popup, before=self)
        popup.clear_options()
        width = max((len(c.label) for c in completions), default=0)
        popup.add_options([make_completion_option(c, width) for c in completions])
        self._set_list_open(is_open=bool(completions))
        if completions:
            popup.highlighted = 0

    def _set_list_open(self, *, is_open: bool) -> None:
        # Textual's events Show and Hide do not tell of a list that is closed and opened again between two frames.
        if self._popup is not None and self._popup.display != is_open:
            self._popup.display = is_open
            self.post_message(self.CompletionsToggled())

    def handle_completion_key(self, key: str) -> bool:
        """Handle a key for the list of completions; return False if it is closed or has no action for the key."""
        popup = self._popup
        if popup is None or not popup.display:
            return False
        if self._completion_text != self._text_before_cursor:  # the worker thread will deliver newer completions
            self._set_list_open(is_open=False)
            return False
        if key in {"up", "down"}:
            popup.action_cursor_up() if key == "up" else popup.action_cursor_down()
        elif key == "tab" or (key == "enter" and not self._is_complete(popup)):
            self.accept_completion()
        elif key == "escape":
            self._set_list_open(is_open=False)
            self.popup_closed_at = time.monotonic()
        else:
            return False
        return True

    def _highlighted_completion(self, popup: OptionList) -> Completion | None:
        index = popup.highlighted
        return self._completions[index] if index is not None and index < len(self._completions) else None

    def _is_complete(self, popup: OptionList) -> bool:
        """Return whether the highlighted completion is already typed in full, so that Enter sends the message."""
        completion = self._highlighted_completion(popup)
        return completion is None or self._text_before_cursor.endswith(completion.text.rstrip())

    def accept_completion(self) -> None:
        """Replace the incomplete text before the cursor with the highlighted completion."""
        popup = self._popup
        completion = self._highlighted_completion(popup) if popup is not None else None
        if popup is None or completion is None:
            return
        row, column = self.cursor_location
        self.replace_and_move(completion.text, (row, column - completion.n_chars), (row, column))
        if not completion.text.endswith("/"):
            self._set_list_open(is_open=False)
        self.focus()
