"""The footer below the input: the keys that work in the focused part, or a notice that replaces them for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from textual.content import Content
from textual.widgets import Static

from edgechat.terminal import escape_controls
from edgechat.tui import keys

if TYPE_CHECKING:
    from textual.timer import Timer

# Minimum height of the screen, in rows, to show the keys.
_MIN_SCREEN_ROWS: Final = 12
_NOTICE_S: Final = 3.0
# Additional display time of a notice for each character.
_S_PER_CHAR: Final = 0.03
# Padding of the row, in columns.
_PADDING: Final = 4
_SEPARATOR: Final = "  "
# Maximum number of rows of a notice.
_MAX_ROWS: Final = 3

Severity = Literal["information", "warning", "error"]


class KeyHint(NamedTuple):
    """Key binding in the footer, with a label of one or two words."""

    binding_id: str
    label: str
    second_id: str = ""
    """ID of the binding for the opposite direction, or ""."""


_COMMON_HINTS: Final = (
    KeyHint("chat.help", "help"), KeyHint("app.palette", "commands"), KeyHint("app.quit", "quit"),
    KeyHint("chat.conversations", "conversations"), KeyHint("chat.models", "models"), KeyHint("chat.search", "search"),
    KeyHint("chat.new", "new"),
)  # fmt: skip
_INPUT_HINTS: Final = (
    KeyHint("chat.stop", "copy/edit/retry"), KeyHint("prompt.up", "history", "prompt.down"), *_COMMON_HINTS,
)  # fmt: skip
_HINTS: Final[dict[str, tuple[KeyHint, ...]]] = {
    "empty input": _INPUT_HINTS,  # its placeholder names the keys that send and insert a line
    "input": (KeyHint("prompt.send", "send"), KeyHint("prompt.newline", "new line"), *_INPUT_HINTS),
    "completions": (
        KeyHint("completion.accept", "accept"), KeyHint("completion.up", "choose", "completion.down"),
        KeyHint("completion.close", "close the list"), *_COMMON_HINTS,
    ),
    "reply": (KeyHint("chat.stop", "stop"), KeyHint("prompt.send", "queue"), *_COMMON_HINTS),
    "reasoning": (
        KeyHint("chat.now", "answer now"), KeyHint("chat.stop", "stop"), KeyHint("prompt.send", "queue"),
        *_COMMON_HINTS,
    ),
    "edit": (KeyHint("prompt.send", "send"), KeyHint("chat.stop", "cancel the edit"), *_COMMON_HINTS),
    "conversation": (
        KeyHint("message.copy", "copy"), KeyHint("message.copy_code", "code"), KeyHint("message.save_code", "save"),
        KeyHint("message.edit", "edit"), KeyHint("message.retry", "retry"), KeyHint("chat.prompt", "input"),
        KeyHint("message.branch", "branch"), KeyHint("message.delete", "delete"), KeyHint("message.undo", "undo"),
        *_COMMON_HINTS,
    ),
    "covered": (),
    "list": (
        KeyHint("list.open", "open"), KeyHint("list.pin", "pin"), KeyHint("list.delete", "delete"),
        KeyHint("list.leave", "back"), *_COMMON_HINTS,
    ),
}  # fmt: skip
"""Key hints for each part of the screen that can have the focus, most important first."""
_HINTS["replies"] = (KeyHint("message.previous", "other reply", "message.next"), *_HINTS["conversation"])
_HINTS["cited"] = (KeyHint("message.passages", "cited passages"), *_HINTS["conversation"])
_HINTS["versions"] = (KeyHint("message.previous", "other version", "message.next"), *_HINTS["conversation"])
_FIXED_KEYS: Final = {
    "list.open": "enter", "completion.accept": "tab", "completion.up": "up", "completion.down": "down",
    "completion.close": "escape",
}  # fmt: skip
"""Keys of lists, which cannot be remapped."""


class Footer(Static):
    """Row of keys that work now. A notice replaces the keys until its time is over or another notice is shown."""

    DEFAULT_CSS = """
    Footer { height: 1; max-height: 3; padding: 0 2; color: $text-muted; }  /* _MAX_ROWS */
    """

    def __init__(
        self, read_part: Callable[[], str], get_key_overrides: Callable[[], Mapping[str, str]], *, show_keys: bool
    ) -> None:
        """`read_part` returns the key of `_HINTS` for the current state. Without `show_keys`, show only notices."""
        super().__init__("", id="footer", markup=False)
        self._read_part = read_part
        self._get_key_overrides = get_key_overrides
        self.shows_keys = show_keys
        self.notice = ""
        """Text of the notice that is shown; "" if the keys are shown."""
        self.severity: Severity = "information"
        """Severity of the last notice."""
        self._timer: Timer | None = None
        self._is_until_key = False
        """True if the notice is shown until the next key."""
        self.n_keys = 0
        """Number of keys that were pressed."""
        self._shown_state: tuple[object, ...] = ()
        self._is_started = False
        """True after the first frame."""
        self.display = show_keys

    def on_mount(self) -> None:
        self.call_after_refresh(self._start)  # the keys would delay the first frame by 5 ms

    def _start(self) -> None:
        self._is_started = True
        self.watch(self.screen, "focused", self.redraw, init=False)
        self.redraw()

    def on_resize(self) -> None:
        self.redraw()

    def show_notice(self, text: str, severity: Severity = "information", *, until_key: bool = False) -> None:
        """Show a notice for a few seconds, or with `until_key` until the next key; "" removes the notice.

        An error is shown for a few seconds, and then until the next key.
        """
        if self._timer is not None:
            self._timer.stop()
        self.notice, self.severity = _join_lines(text), severity
        duration_s = _NOTICE_S + len(self.notice) * _S_PER_CHAR
        self._timer = self.set_timer(duration_s, self._on_notice_read) if text and not until_key else None
        self._is_until_key = until_key
        self.redraw()

    def end_information(self) -> None:
        """Remove a notice that is neither a warning nor an error."""
        if self.notice and self.severity == "information":
            self._end_notice()

    def has_room_for(self, text: str) -> bool:
        """Return whether the footer can show the whole text as a notice."""
        width = self.size.width or self.app.size.width - _PADDING
        return width > 0 and len(Content(_join_lines(text)).wrap(width)) <= _MAX_ROWS

    def _on_notice_read(self) -> None:
        if self.severity == "error":
            self._is_until_key = True
        else:
            self._end_notice()

    def note_key(self) -> None:
        """Count a key press, and remove a notice that is shown until the next key."""
        self.n_keys += 1
        if self._is_until_key:
            self._end_notice()

    def _end_notice(self) -> None:
        self.show_notice("")

    def redraw(self) -> None:
        """Show the notice or the keys, if they have changed."""
        if not self._is_started or not self.is_attached:
            return
        width, height = (self.size.width or self.app.size.width - _PADDING), self.app.size.height
        has_keys = self.shows_keys and height >= _MIN_SCREEN_ROWS
        state = (self.notice, self.severity, has_keys, width, self._read_part(), dict(self._get_key_overrides()))
        if state == self._shown_state:
            return
        self._shown_state = state
        self.display = bool(self.notice) or has_keys
        if self.notice:
            self.styles.height = "auto"  # as many rows as the wrapped text needs
            style = "$foreground" if self.severity == "information" else f"$text-{self.severity}"
            self.update(Content.styled(self.notice, style))
        elif has_keys:
            self.styles.height = 1
            self.update(self.format_keys(width), layout=False)

    def format_keys(self, width: int) -> Content:
        """Return as many key hints as fit into `width` columns, the most important ones first."""
        default_keys, overrides = self._read_default_keys(), self._get_key_overrides()
        parts: list[tuple[str, str] | str] = []
        n_columns = 0
        for hint in _HINTS[self._read_part()]:
            key = keys.format_labels((hint.binding_id, hint.second_id), default_keys, overrides)
            n_columns += len(key) + 1 + len(hint.label) + (len(_SEPARATOR) if parts else 0)
            if key and n_columns > width:
                break
            if key:
                parts += [_SEPARATOR if parts else "", (key, "bold"), f" {hint.label}"]
        return Content.assemble(*parts)

    def key_label(self, *binding_ids: str) -> str:
        """Return the label of the first key of each binding, such as "Alt+Left/Right"; "" if there is none."""
        return keys.format_labels(binding_ids, self._read_default_keys(), self._get_key_overrides())

    def _read_default_keys(self) -> dict[str, str]:
        """Return the declared keys by binding ID of all parts of the screen."""
        nodes = [self.app, self.screen, *self.screen.walk_children()]
        declared = keys.list_declared_bindings(*dict.fromkeys(type(node) for node in nodes))
        return _FIXED_KEYS | {binding.id: binding.keys for binding in declared}


def _join_lines(text: str) -> str:
    return " ".join(escape_controls(text).split())
