"""Makes text from a model safe to print on a terminal: what would act there becomes visible instead."""

from __future__ import annotations

from typing import Final

_ESCAPE_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},  # tab and newline stay
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # C1 controls: 0x9B alone starts a sequence on some terminals
    # Line and paragraph separators, and marks that reorder the text around them: harmless to a terminal's
    # state, but not to what a reader thinks a command says.
    **dict.fromkeys((0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}


def escape_controls(text: str) -> str:
    """`text` with control characters shown as pictures (U+2400 and on), other than tab and newline."""
    return text.replace("\r\n", "\n").translate(_ESCAPE_PICTURES)
