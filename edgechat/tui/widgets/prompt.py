"""The input: several lines, with what was said before, with completion, and with pastes of any size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on, work
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from edgechat.terminal import visible
from edgechat.tui import keys

if TYPE_CHECKING:
    from textual.events import Key, Paste
    from textual.widgets import OptionList

    from edgechat.tui.completion import Completion

# Longer pastes stand as a mark in the text: the editor would lay all of it out with every key.
_LONG_CHARS: Final = 8192
_LONG_LINES: Final = 200
_MARK: Final = re.compile(r"\[pasted text (\d+): [\d,]+ lines?\]")


PromptState = tuple[str, dict[int, str]]
"""A text with marks for long pastes, and the pastes."""


class PromptInput(TextArea):
    """A multi-line editor that grows with its text."""

    DEFAULT_CSS = """
    PromptInput { height: auto; min-height: 3; max-height: 10; border: round $border-blurred; padding: 0 1; }
    PromptInput:focus { border: round $border; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send"),
        Binding("ctrl+j,alt+enter,shift+enter", "newline", "New line", id="prompt.newline"),
        Binding("tab", "complete", "Complete, or to the conversation", id="prompt.complete", show=False),
        Binding("up", "history_back", "Up, or what was said before", id="prompt.up", show=False),
        Binding("down", "history_forward", "Down, or what was said after that", id="prompt.down", show=False),
        Binding("ctrl+r", "app.prompts", "Search what you said before", id="prompt.search", show=False),
        Binding("ctrl+g", "open_editor", "Write in $EDITOR", id="prompt.editor", show=False),
        Binding("ctrl+c", "copy_or_stop", "Copy what is selected, or stop", id="prompt.copy", show=False),
        Binding("backspace", "erase", "Erase", id="prompt.erase", show=False),
        Binding("ctrl+d", "delete_or_quit", "Delete, or leave if there is nothing", id="prompt.delete", show=False),
    ]

    class Submitted(Message):
        """The user sent a message; `held` is what the input had for it, to be put back if need be."""

        def __init__(self, text: str, state: PromptState) -> None:
            super().__init__()
            self.text = text
            self.state = state

    class Interrupted(Message):
        """Ctrl+C, and nothing is selected."""

    class EditorRequested(Message):
        """The text is to be edited elsewhere."""

    class HistoryRequested(Message):
        """What was said before is to be known."""

    class CompletionsReady(Message):
        """What could be meant."""

        def __init__(self, before: str, found: list[Completion]) -> None:
            super().__init__()
            self.before = before
            self.found = found

    def __init__(self, *, id: str) -> None:  # noqa: A002  (Textual's name)
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False,
            placeholder="Ask something. Enter sends, Ctrl+J new line, F1 help",
        )  # fmt: skip
        self.cursor_blink = False  # a screen that nobody touches is not painted
        self.past_messages: list[str] | None = None
        """What was said before, the newest first; None until somebody asked for it."""
        self._at = -1
        self._draft = ""
        self._pastes: dict[int, str] = {}
        self._completions: list[Completion] = []
        self._popup: OptionList | None = None
        """What is offered, above the input; made when there is something."""
        self._completed = ""
        """What they were found for."""

    # Text

    @property
    def full_text(self) -> str:
        """What would be sent: with pastes in the place of their marks."""
        if not self._pastes:
            return self.text
        return _MARK.sub(lambda match: self._pastes.get(int(match[1]), match[0]), self.text)

    def load(self, text: str) -> None:
        """Put another text in the place of this one."""
        self.clear()
        self._pastes.clear()
        self.insert(self._marked(visible(text)))
        self.move_cursor(self.document.end)

    def restore(self, held: PromptState) -> None:
        """Hold again what was sent, marks and all."""
        self.clear()
        self._pastes = dict(held[1])
        self.insert(held[0])
        self.move_cursor(self.document.end)

    def _marked(self, text: str) -> str:
        """A text, or a mark for it if it is long."""
        n_lines = text.count("\n") + 1
        if len(text) <= _LONG_CHARS and n_lines <= _LONG_LINES:
            return text
        number = len(self._pastes) + 1
        self._pastes[number] = text
        return f"[pasted text {number}: {n_lines:,} line{'s' if n_lines > 1 else ''}]"

    async def _on_paste(self, event: Paste) -> None:
        event.prevent_default()
        event.stop()
        # What a clipboard holds may be meant for the terminal, not for us.
        text = visible(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        result = self._replace_via_keyboard(self._marked(text), *self.selection)
        if result is not None:
            self.move_cursor(result.end_location)

    # Keys

    async def _on_key(self, event: Key) -> None:
        # Not bindings with priority: those act when a key arrives, while the letters before it still wait in
        # this widget's queue. A line and its Enter that come in one packet would be torn apart.
        if self._popup is not None and self._popup.display and self._steer(self._popup, event.key):
            event.prevent_default()
            event.stop()
            return
        action = keys.action_for(self, event.key)
        if action is None:
            await super()._on_key(event)
            return
        event.prevent_default()
        event.stop()
        await self.run_action(action)

    def action_send(self) -> None:
        """Hand the text over, if there is any."""
        text = self.full_text.strip()
        if text:
            held = (self.text, dict(self._pastes))
            self.clear()
            self._pastes.clear()
            self._at, self._draft = -1, ""
            self.post_message(self.Submitted(text, held))

    def action_newline(self) -> None:
        """A line more."""
        self.insert("\n")

    async def action_delete_or_quit(self) -> None:
        """As in a shell."""
        if self.text:
            self.action_delete_right()
        else:
            await self.app.action_quit()

    def action_copy_or_stop(self) -> None:
        """Copy; with nothing selected, as the screen says."""
        if self.selected_text:
            self.action_copy()
        else:
            self.post_message(self.Interrupted())

    def action_erase(self) -> None:
        """A character, or a whole mark of a paste."""
        before = self.get_text_range((0, 0), self.cursor_location)
        mark = next((m for m in _MARK.finditer(before) if m.end() == len(before)), None) if self._pastes else None
        if mark is None or self.selected_text:
            self.action_delete_left()
        else:
            row, column = self.cursor_location
            self.delete((row, column - len(mark[0])), (row, column))

    def action_open_editor(self) -> None:
        """Ask for the editor."""
        self.post_message(self.EditorRequested())

    # What was said before

    def action_history_back(self) -> None:
        """Up in the text; above its first line, to what was said before."""
        if self.cursor_location[0] > 0 or self.wrapped_document.location_to_offset(self.cursor_location).y > 0:
            self.action_cursor_up()
        elif self.past_messages is None:
            self.post_message(self.HistoryRequested())
        else:
            self.recall(self._at + 1)

    def action_history_forward(self) -> None:
        """Down in the text; below its last line, to what was said after that."""
        last = self.wrapped_document.height - 1
        if self.wrapped_document.location_to_offset(self.cursor_location).y < last:
            self.action_cursor_down()
        elif self._at >= 0:
            self.recall(self._at - 1)

    def recall(self, at: int) -> None:
        """Show the message before `at` others; -1 is what was being written."""
        history = self.past_messages or []
        if not -1 <= at < len(history):
            return
        if self._at < 0:
            self._draft = self.full_text
        self._at = at
        self.load(history[at] if at >= 0 else self._draft)
        if at >= 0:
            self.move_cursor((0, 0))

    # Completion

    @property
    def _before(self) -> str:
        return self.get_text_range((0, 0), self.cursor_location) if len(self.text) <= _LONG_CHARS else ""

    @on(TextArea.Changed)
    @on(TextArea.SelectionChanged)
    def _on_edited(self) -> None:
        from edgechat.tui import completion

        before = self._before
        if self.has_focus and completion.is_begun(before):
            self._look_up(before)
        elif self._popup is not None:
            self._popup.display = False

    @work(thread=True, exclusive=True, group="completion", exit_on_error=False)
    def _look_up(self, before: str) -> None:
        from edgechat.tui import completion

        self.post_message(self.CompletionsReady(before, completion.complete(before, Path.cwd())))

    def on_prompt_input_completions_ready(self, message: CompletionsReady) -> None:
        """Show what could be meant, if that was not typed meanwhile."""
        from edgechat.tui.widgets.completion_popup import CompletionPopup, option

        if message.before != self._before or not self.is_attached:
            return
        found = message.found
        if len(found) == 1 and message.before.endswith(found[0].text.strip()):
            found = []  # it is there already
        self._completions, self._completed = found, message.before
        popup = self._popup
        if popup is None:
            self._popup = popup = CompletionPopup(self.accept_completion)
            self.screen.mount(popup, before=self)
        popup.clear_options()
        width = max((len(c.shown) for c in found), default=0)
        popup.add_options([option(c, width) for c in found])
        popup.display = bool(found)
        if found:
            popup.highlighted = 0

    def _steer(self, popup: OptionList, key: str) -> bool:
        """Let keys move in what is offered; False if the key means something else."""
        if self._completed != self._before:  # typed faster than it was found
            popup.display = False
            return False
        if key in {"up", "down"}:
            popup.action_cursor_up() if key == "up" else popup.action_cursor_down()
        elif key == "tab" or (key == "enter" and not self._is_whole(popup)):
            self.accept_completion()
        elif key == "escape":
            popup.display = False
        else:
            return False
        return True

    def _is_whole(self, popup: OptionList) -> bool:
        """True if a command stands there as it would be completed: Enter sends it."""
        at = popup.highlighted
        chosen = self._completions[at] if at is not None and at < len(self._completions) else None
        return chosen is None or self._before.endswith(chosen.text.rstrip())

    def accept_completion(self) -> None:
        """Put what is highlighted of what is offered into the text."""
        popup = self._popup
        at = popup.highlighted if popup is not None else None
        if popup is None or at is None or at >= len(self._completions):
            return
        chosen = self._completions[at]
        row, column = self.cursor_location
        self._replace_via_keyboard(chosen.text, (row, column - chosen.n_chars), (row, column))
        self.move_cursor((row, column - chosen.n_chars + len(chosen.text)))
        if not chosen.text.endswith("/"):
            popup.display = False
        self.focus()

    def action_complete(self) -> None:
        """There is nothing to complete: to the conversation."""
        self.screen.focus_next()
