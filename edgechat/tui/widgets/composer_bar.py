"""Rows above the input: the attachments of the next message as chips, and the queued messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from edgechat.humanize import format_size
from edgechat.terminal import escape_controls

# Hint that is shown after the chips if there is room.
_CHIP_HINT: Final = "Backspace removes the last"

_MAX_QUEUE_ROWS: Final = 3
_MAX_NAME_CHARS: Final = 30
# Minimum width of the rows, in columns, to show the key that moves a queued message to the input.
_MIN_HINT_COLUMNS: Final = 70
# Padding of the rows, in columns.
_PADDING: Final = 4


class ComposerState(NamedTuple):
    """Attachments and queue of the next messages."""

    attachments: Sequence[Path] = ()
    n_tokens_by_file: Mapping[Path, int] = {}
    """Numbers of tokens by attachment, as far as they have been counted."""
    queued_texts: Sequence[str] = ()
    is_queue_held: bool = False
    """True if the queue waits for the user, because a reply was stopped."""
    n_ctx: int | None = None
    """Context length in tokens; None while no model is loaded."""
    up_key: str = "Up"
    """Key that moves the last queued message to the empty input."""


class ComposerBar(Static):
    """Row of chips and a row for each queued message; hidden if there are none. A click on a cross removes an item."""

    DEFAULT_CSS = """
    ComposerBar { height: 1; padding: 0 2; color: $text-muted; display: none; text-wrap: nowrap; }
    """

    class DetachRequested(Message):
        """The user clicked on the cross of an attachment."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class QueuedSelected(Message):
        """The user clicked on a queued message, to edit or to remove it."""

        def __init__(self, index: int, *, remove: bool) -> None:
            super().__init__()
            self.index = index
            self.removes = remove

    def __init__(self, read_state: Callable[[], ComposerState]) -> None:
        """`read_state` returns the current attachments and queued messages."""
        super().__init__("", id="composer-bar", markup=False)
        self._read_state = read_state
        self._shown_state: tuple[object, ...] = ()

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw the rows, if they have changed."""
        state = self._read_state()
        width = max(1, self.app.size.width - _PADDING if not self.size.width else self.size.width)
        key = (width, tuple(state.attachments), dict(state.n_tokens_by_file), tuple(state.queued_texts), *state[3:])
        if key == self._shown_state:
            return
        self._shown_state = key
        rows = [self._format_chips(state, width)] if state.attachments else []
        rows += self._format_queue(state, width) if state.queued_texts else []
        self.display = bool(rows)
        if rows:
            self.styles.height = len(rows)
            self.update(Content("\n").join(rows), layout=False)

    def _format_chips(self, state: ComposerState, width: int) -> Content:
        """Format the chips that fit into `width` columns, too long files first, and the number of remaining files."""
        parts: list[Content] = []
        n_columns = 0
        files = sorted(enumerate(state.attachments), key=lambda item: not _is_too_long(item[1], state))
        for index, file in files:
            chip = self._format_chip(index, file, state)
            n_columns += chip.cell_length + 2
            if parts and n_columns > width - len("+99 more"):
                parts.append(Content(f"+{len(files) - len(parts)} more"))
                break
            parts.append(chip)
        if n_columns + len(_CHIP_HINT) <= width:
            parts.append(Content(_CHIP_HINT))
        return Content("  ").join(parts)

    def _format_chip(self, index: int, file: Path, state: ComposerState) -> Content:
        from edgechat.chat.messages import first_line  # imported here, so that the first frame is not delayed

        try:
            details = f" {format_size(file.stat().st_size)}"
        except OSError:
            details = " missing"
        n_tokens, style = state.n_tokens_by_file.get(file), ""
        if n_tokens is not None:
            is_too_long = _is_too_long(file, state)
            details += f" {n_tokens:,} tokens" + (f" of {state.n_ctx:,}: too long" if is_too_long else "")
            style = "$text-error" if is_too_long else ""
        name = first_line(escape_controls(file.name), _MAX_NAME_CHARS)
        return Content.assemble("[", (name, "bold"), (details, style), " ", self._make_cross(f"detach({index})"), "]")

    def _format_queue(self, state: ComposerState, width: int) -> list[Content]:
        from edgechat.chat.messages import first_line

        n_queued = len(state.queued_texts)
        n_rows = n_queued if n_queued <= _MAX_QUEUE_ROWS else _MAX_QUEUE_ROWS - 1
        verb = "held" if state.is_queue_held else "queued"
        hint = f"  {state.up_key} in the empty input edits {'it' if n_queued == 1 else 'the last one'}"
        hint = hint if width >= _MIN_HINT_COLUMNS else ""
        hints = [hint if index == n_queued - 1 else "" for index in range(n_rows)]
        rows: list[Content] = []
        for index, text in enumerate(state.queued_texts[:n_rows]):
            label = f"{verb} {index + 1}/{n_queued}  "
            line = Content(first_line(escape_controls(text), max(1, width - len(label) - 3 - len(hints[index]))))
            action = Style.from_meta({"@click": f"edit_queued({index})"})
            rows.append(Content.assemble(label, line.stylize(action), " ", self._make_cross(f"remove_queued({index})")))
        if n_queued > n_rows:
            rows.append(Content(f"and {n_queued - n_rows} more"))
        rows[-1] = Content.assemble(rows[-1], hint)
        return rows

    def _make_cross(self, action: str) -> Content:
        mark = "x" if self.app.has_class("ascii") else "\u00d7"
        return Content(mark).stylize(Style.from_meta({"@click": action}))

    def action_detach(self, index: int) -> None:
        self.post_message(self.DetachRequested(index))

    def action_edit_queued(self, index: int) -> None:
        self.post_message(self.QueuedSelected(index, remove=False))

    def action_remove_queued(self, index: int) -> None:
        self.post_message(self.QueuedSelected(index, remove=True))


def _is_too_long(file: Path, state: ComposerState) -> bool:
    n_tokens = state.n_tokens_by_file.get(file)
    return n_tokens is not None and state.n_ctx is not None and n_tokens > state.n_ctx
