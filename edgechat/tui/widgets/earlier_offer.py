"""Row that offers the reply of an earlier conversation to the same first message."""

from __future__ import annotations

from typing import Final

from textual.content import Content
from textual.style import Style
from textual.widgets import Static

# Texts after the key, the longest first; the first one that fits is shown.
_VARIANTS: Final = (
    (" shows the earlier reply", ", other keys hide it"),
    (" shows the earlier reply", ""),
    (" shows it", ""),
)
# Padding of the row, in columns.
_PADDING: Final = 4


class EarlierOffer(Static):
    """Row above the status line, which goes away with the next key. A click on its key uses the earlier reply."""

    DEFAULT_CSS = """
    EarlierOffer { height: 1; padding: 0 2; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__("", id="earlier-offer", markup=False)

    def show(self, text: str, key: str) -> None:
        """Show the offer; `text` says when the message was sent earlier, and `key` is the key that uses its reply."""
        width = self.size.width or self.app.size.width - _PADDING
        action = Style.from_meta({"@click": "screen.command('earlier')"})
        for verb, hint in _VARIANTS:
            button = Content.assemble((key, "bold"), verb).stylize(action)
            row = Content.assemble(f"{text}: ", button, hint)
            if row.cell_length <= width:
                break
        self.update(row)
        self.display = True
