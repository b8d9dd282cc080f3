"""The prompt: a multi-line input with history, completion, and pastes of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from textual.binding import Binding, BindingType
from textual.message import Message

from edgechat.lazy_pattern import LazyPattern
from edgechat.terminal import escape_input
from edgechat.tui import keys
from edgechat.tui.key_names import format_key
from edgechat.tui.widgets.completing_editor import CompletingEditor

if TYPE_CHECKING:
    from textual.events import Key, Paste


# Longer pastes are shown as a marker, because TextArea lays out its whole text on every key press.
_MAX_INLINE_CHARS: Final = 8192
_MAX_INLINE_LINES: Final = 200
_PASTE_MARKER: Final = LazyPattern(r"\[pasted text (\d+): [\d,]+ lines?\]")


# Default keys in the placeholder, by the ID of their binding.
_PLACEHOLDER_KEYS: Final = {"prompt.send": "enter", "prompt.newline": "ctrl+j", "chat.help": "f1"}


class PromptState(NamedTuple):
    """Content of the prompt when a message is sent, to restore the prompt if sending fails."""

    text: str
    """Text with a marker in place of each long paste."""
    pastes: dict[int, str]
    """Long pastes by the number in their marker."""


class PromptInput(CompletingEditor):
    """Multi-line text input that grows with its text."""

    DEFAULT_CSS = """
    PromptInput { height: auto; min-height: 3; max-height: 10; border: round $border-blurred; padding: 0 1; }
    PromptInput:focus { border: round $border; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send"),
        Binding("ctrl+j,alt+enter,shift+enter", "newline", "New line", id="prompt.newline"),
        Binding(
            "tab", "complete", "Accept the completion, or go to the conversation", id="prompt.complete", show=False
        ),
        Binding("up", "history_back", "Cursor up, or previous prompt", id="prompt.up", show=False),
        Binding("down", "history_forward", "Cursor down, or next prompt", id="prompt.down", show=False),
        Binding("ctrl+r", "search_history", "Search previous prompts", id="prompt.search", show=False),
        Binding("ctrl+g", "open_editor", "Open in $EDITOR", id="prompt.editor", show=False),
        Binding(
            "ctrl+c", "copy_or_interrupt", "Copy the selection, stop the reply, clear the input, or quit",
            id="prompt.copy", show=False,
        ),
        Binding("backspace", "erase", "Delete backward", id="prompt.erase", show=False),
        Binding("ctrl+d", "delete_or_quit", "Delete forward, or quit if empty", id="prompt.delete", show=False),
    ]  # fmt: skip

    class Submitted(Message):
        """The user sent a message. `state` is the content of the prompt, to restore if sending fails."""

        def __init__(self, text: str, state: PromptState) -> None:
            super().__init__()
            self.text = text
            self.state = state

    class Interrupted(Message):
        """The user pressed Ctrl+C without a selection in the input."""

    class ErasedAtStart(Message):
        """The user pressed Backspace at the start of the text."""

    class EditorRequested(Message):
        """The user wants to edit the text in an external editor."""

    class HistoryRequested(Message):
        """Request to set `past_messages`, and then to open the search (`search`) or recall the newest message."""

        def __init__(self, *, search: bool) -> None:
            super().__init__()
            self.search = search

    def __init__(self, get_key_overrides: Callable[[], Mapping[str, str]], *, id: str) -> None:  # noqa: A002
        """`get_key_overrides` returns the configured keys by binding ID."""
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False,
            placeholder=_format_placeholder(get_key_overrides()),
        )  # fmt: skip
        self.cursor_blink = False  # a blinking cursor would repaint an idle screen
        self._get_key_overrides = get_key_overrides
        self.past_messages: list[str] | None = None
        """Messages that the user sent earlier, newest first; None until they are read from the store."""
        self._history_index = -1
        self._unsent_text = ""
        """Text that was in the input before the first `recall`; `recall(-1)` restores it."""
        self._pastes: dict[int, str] = {}
        self.take_back_queued: Callable[[], bool] = lambda: False
        """Function that moves the last queued message to the empty input; it returns False if there is none."""
        self.may_send: Callable[[str], bool] = lambda _text: True
        """Function that returns whether the text can be sent now; it returns False after it has asked the user."""

    def update_placeholder(self) -> None:
        """Name the configured keys in the empty input."""
        placeholder = _format_placeholder(self._get_key_overrides())
        if self.placeholder != placeholder:
            self.placeholder = placeholder

    # Text

    @property
    def full_text(self) -> str:
        """The text with each marker replaced by its paste."""
        if not self._pastes:
            return self.text
        return _PASTE_MARKER.compiled.sub(lambda match: self._pastes.get(int(match[1]), match[0]), self.text)

    def load(self, text: str) -> None:
        """Replace the content with `text`, or with a paste marker if `text` is long."""
        self.clear()
        self._pastes.clear()
        self.type_text(text)
        self.move_cursor(self.document.end)

    def type_text(self, text: str) -> None:
        """Insert `text` at the cursor, or a paste marker if `text` is long."""
        self.insert(self._shorten(escape_input(text)))

    def restore(self, state: PromptState) -> None:
        """Restore the content that the prompt had when a message was sent, including paste markers."""
        self.clear()
        self._pastes = dict(state.pastes)
        self.insert(state.text)
        self.move_cursor(self.document.end)

    def _shorten(self, text: str) -> str:
        """Return a short text unchanged; store a long text as a paste and return its marker."""
        n_lines = text.count("\n") + 1
        if len(text) <= _MAX_INLINE_CHARS and n_lines <= _MAX_INLINE_LINES:
            return text
        number = len(self._pastes) + 1
        self._pastes[number] = text
        return f"[pasted text {number}: {n_lines:,} line{'s' if n_lines > 1 else ''}]"

    def on_paste(self, event: Paste) -> None:
        event.prevent_default()
        event.stop()
        # A clipboard may contain escape sequences, which must not reach the terminal.
        text = escape_input(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        self.replace_and_move(self._shorten(text), *self.selection)

    # Keys

    async def on_key(self, event: Key) -> None:
        # Keys are handled here instead of by priority bindings. A priority binding runs as soon as its key arrives,
        # while earlier letters are still in this widget's message queue, so Enter would overtake text from the same
        # packet.
        if self.handle_completion_key(event.key):
            event.prevent_default()
            event.stop()
            return
        if await self._run_key(event.key):
            event.prevent_default()
            event.stop()

    async def _run_key(self, key: str) -> bool:
        """Run the action of a key: one that the user assigned to it, one of the input, or one of every text input."""
        overrides = self._get_key_overrides()
        if keys.is_assigned_elsewhere(key, "prompt", overrides):
            action = keys.find_action(type(self.screen), key, overrides)
            if action is not None:
                await self.screen.run_action(action)
            return action is not None
        action = keys.find_action(type(self), key, overrides)
        if action is not None:
            await self.run_action(action)
            return True
        if self._needs_page_key(key):
            self.action_cursor_page_up() if key == "pageup" else self.action_cursor_page_down()
            return True
        if self._is_at_end(key):  # the key scrolls the conversation
            return False
        return await self.run_editing_key(key)

    def _needs_page_key(self, key: str) -> bool:
        """Return whether a page key moves the cursor, because the text does not fit and continues in its direction.

        Otherwise the key scrolls the conversation.
        """
        height = self.wrapped_document.height
        if key not in {"pageup", "pagedown"} or height <= self.scrollable_content_region.height:
            return False
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        return row > 0 if key == "pageup" else row < height - 1

    def _is_at_end(self, key: str) -> bool:
        """Return whether `key` is Home and the cursor is at the start of the text, or End and it is at the end."""
        ends = {"home": (0, 0), "end": self.document.end}
        return not self.selected_text and self.cursor_location == ends.get(key)

    def action_send(self) -> None:
        text = self.full_text.strip()
        if text and self.may_send(text):
            state = PromptState(self.text, dict(self._pastes))
            self.clear()
            self._pastes.clear()
            self._history_index, self._unsent_text = -1, ""
            self.post_message(self.Submitted(text, state))

    def action_newline(self) -> None:
        self.insert("\n")

    def clear_undoably(self) -> None:
        """Clear the text; undo restores it, with its pastes."""
        self.history.checkpoint()
        self.clear()

    async def action_delete_or_quit(self) -> None:
        if self.text:
            self.action_delete_right()
        else:
            await self.app.action_quit()

    def action_copy_or_interrupt(self) -> None:
        if self.selected_text:
            self.action_copy()
        else:
            self.post_message(self.Interrupted())

    def action_erase(self) -> None:
        """Delete the character or the complete paste marker to the left of the cursor."""
        if self.cursor_location == (0, 0) and not self.selected_text:
            self.post_message(self.ErasedAtStart())
            return
        text_before = self.get_text_range((0, 0), self.cursor_location)
        markers = _PASTE_MARKER.compiled.finditer(text_before) if self._pastes and not self.selected_text else ()
        marker = next((m for m in markers if m.end() == len(text_before)), None)
        if marker is None:
            self.action_delete_left()
        else:
            row, column = self.cursor_location
            self.delete((row, column - len(marker[0])), (row, column))

    def action_open_editor(self) -> None:
        self.post_message(self.EditorRequested())

    # History

    def action_search_history(self) -> None:
        self.post_message(self.HistoryRequested(search=True))

    def action_history_back(self) -> None:
        """Move the cursor up; on the first row, recall the previous message, starting with queued messages."""
        if not self.text and self._history_index < 0 and self.take_back_queued():
            return
        if self.cursor_location[0] > 0 or self.wrapped_document.location_to_offset(self.cursor_location).y > 0:
            self.action_cursor_up()
        elif self.past_messages is None:
            self.post_message(self.HistoryRequested(search=False))
        else:
            self.recall(self._history_index + 1)

    def action_history_forward(self) -> None:
        """Move the cursor down; on the last row, recall the next message."""
        last_row = self.wrapped_document.height - 1
        if self.wrapped_document.location_to_offset(self.cursor_location).y < last_row:
            self.action_cursor_down()
        elif self._history_index >= 0:
            self.recall(self._history_index - 1)

    def recall(self, index: int) -> None:
        """Load message `index` of the history, 0 being the newest; -1 restores the unsent text."""
        messages = self.past_messages or []
        if not -1 <= index < len(messages):
            return
        if self._history_index < 0:
            self._unsent_text = self.full_text
        self._history_index = index
        self.load(messages[index] if index >= 0 else self._unsent_text)
        if index >= 0:
            self.move_cursor((0, 0))

    @property
    def draft(self) -> str:
        """Unsent text of the user; a recalled message counts only if the user has changed it."""
        if self._history_index < 0:
            return self.full_text
        recalled_texts = (self.past_messages or [])[self._history_index : self._history_index + 1]
        is_changed = [self.full_text] != [escape_input(text) for text in recalled_texts]
        return "\n\n".join(t for t in (self._unsent_text, self.full_text if is_changed else "") if t)

    def take_draft(self) -> str:
        """Leave the history of past messages, and return the `draft`; the text in the input is kept."""
        draft = self.draft
        self._history_index, self._unsent_text = -1, ""
        return draft

    def action_complete(self) -> None:
        """Focus the next widget, because Tab accepts a completion only while the list of completions is open."""
        self.screen.focus_next()


def _format_placeholder(overrides: Mapping[str, str]) -> str:
    """Return the text of the empty input; `overrides` contains remapped keys by binding ID."""
    keys_by_id = {binding_id: overrides.get(binding_id) or key for binding_id, key in _PLACEHOLDER_KEYS.items()}
    send, newline, show_help = (format_key(keys.partition(",")[0]) for keys in keys_by_id.values())
    return f"Ask something. {send} sends, {newline} new line, {show_help} help"
