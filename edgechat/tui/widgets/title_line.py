"""The title line above the conversation: its title and model, and marks for its persona and changed settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from textual.widgets import Static

from edgechat.lazy_pattern import LazyPattern
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.chat.personas import Persona
    from edgechat.config import Settings

# Minimum height of the screen in rows for the title line.
_MIN_SCREEN_ROWS: Final = 24
# Padding of the row, in columns.
_PADDING: Final = 4
# Maximum number of collections of documents that are named.
_MAX_COLLECTIONS: Final = 3
_NEW_TITLE: Final = "New conversation"
# Parts between the names in the description of a model, which are not shortened.
_FIXED_PARTS: Final = LazyPattern(r"( \(remote, [^()]*\)|^route: |, or )")
# Settings of a conversation that the line shows if they differ from the settings file, with their labels.
_SHOWN_SETTINGS: Final = {
    "temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p",
    "typical_p": "typical-p", "top_n_sigma": "top-n-sigma", "xtc_probability": "XTC", "dynatemp_range": "dynatemp",
    "mirostat": "mirostat", "dry_multiplier": "DRY",
    "repeat_penalty": "repeat penalty", "presence_penalty": "presence penalty",
    "frequency_penalty": "frequency penalty", "seed": "seed", "max_tokens": "max tokens",
    "reasoning": "reasoning", "thinking": "thinking",
}  # fmt: skip


class ChatTitle(NamedTuple):
    """Content of the title line."""

    title: str = ""
    model_name: str = ""
    marks: tuple[str, ...] = ()
    """Persona, system prompt, changed settings and `ephemeral`, in the order of importance."""

    def format(self, separator: str, ellipsis: str, width: int) -> str:
        """Return the text of the line; a title that is too long is cut, so that the marks are visible.

        If the title has a third of the line and the model does not fit into the rest, the names of models are cut, and
        then the title, so that the hosts of remote models are visible.
        """
        title = self.title or _NEW_TITLE
        n_free = width - min(cell_len(title), width // 3) - cell_len(separator)
        model_name = shorten_model_name(self.model_name, n_free, ellipsis)
        others = [part for part in (model_name, *self.marks) if part]
        rest = separator.join(["", *others])
        n_columns = max(width // 3, width - cell_len(rest))
        if " (remote, " in model_name:
            n_columns = min(n_columns, max(0, width - cell_len(separator + model_name)))
        return _cut(title, n_columns, ellipsis) + rest


def shorten_model_name(text: str, width: int, ellipsis: str) -> str:
    """Cut the names in `text`, such as `box/llama (remote, HOST)` or `route: A, or B`, to fit into `width` columns.

    The hosts of remote models remain, even if the text is then wider.
    """
    parts = _FIXED_PARTS.compiled.split(text)  # names, with fixed parts between them
    n_free = width - sum(map(cell_len, parts[1::2]))
    lengths = [cell_len(name) for name in parts[::2]]
    limit = max(lengths)
    while limit > 1 and sum(min(length, limit) for length in lengths) > n_free:
        limit -= 1
    parts[::2] = [_cut(name, limit, ellipsis) for name in parts[::2]]
    return "".join(parts)


def _cut(text: str, n_columns: int, ellipsis: str) -> str:
    if cell_len(text) <= n_columns:
        return text
    kept = set_cell_size(text, max(0, n_columns - cell_len(ellipsis))).rstrip()
    return kept + set_cell_size(ellipsis, min(n_columns, cell_len(ellipsis)))


def describe_settings(settings: Settings, base_settings: Settings, persona: Persona | None) -> tuple[str, ...]:
    """Return the marks of the title line: persona, documents, and each setting that differs from `base_settings`.

    Settings that `persona` contains have no mark of their own.
    """
    marks = [persona.name] if persona is not None else []
    persona_names = persona.values.keys() if persona is not None else ()
    if settings.system_prompt and "system_prompt" not in persona_names:
        marks.append("system prompt")
    if settings.docs:
        names = ", ".join(settings.docs[:_MAX_COLLECTIONS])
        n_more = len(settings.docs) - _MAX_COLLECTIONS
        marks.append(f"documents: {names}{f' and {n_more} more' if n_more > 0 else ''}")
    for name, label in _SHOWN_SETTINGS.items():
        value = getattr(settings, name)
        if value is not None and value != getattr(base_settings, name) and name not in persona_names:
            text = (
                ("on" if value else "off")
                if isinstance(value, bool)
                else f"{value:g}"
                if isinstance(value, float)
                else str(value)
            )
            marks.append(f"{label} {text}")
    return tuple(marks)


class TitleLine(Static):
    """Row that shows a `ChatTitle`; hidden on screens of fewer than 24 rows."""

    DEFAULT_CSS = """
    TitleLine { height: 1; padding: 0 2; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__("", id="title", markup=False)
        self._shown_state = ("", 0)
        self._chat_title = ChatTitle("edgechat")

    def on_mount(self) -> None:
        self.fold()

    def fold(self) -> None:
        """Hide the line on a low screen, and show it on a higher one."""
        self.display = self.app.size.height >= _MIN_SCREEN_ROWS
        self.redraw()

    def on_resize(self) -> None:
        self.redraw()

    def show(self, chat_title: ChatTitle) -> None:
        """Show a new title."""
        self._chat_title = chat_title
        self.redraw()

    def redraw(self) -> None:
        """Draw the line, if its text has changed."""
        width = self.size.width or self.app.size.width - _PADDING
        separator, ellipsis = (" | ", "...") if self.app.has_class("ascii") else (" · ", "…")
        text = escape_controls(self._chat_title.format(separator, ellipsis, width)).replace("\n", " ")
        if (text, width) != self._shown_state:
            self._shown_state = (text, width)
            self.update(text, layout=False)
