"""Line filter that raises the contrast of drawn text to 4.5 to 1."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rich.color import Color as RichColor
from rich.color import ColorType
from rich.segment import Segment
from rich.style import Style
from textual.filter import LineFilter, dim_color

if TYPE_CHECKING:
    from textual.color import Color

_N_STEPS: Final = 24
"""Number of shades that are tried between the colour of a text and white or black."""


class ReadableText(LineFilter):
    """Raises the contrast of letters and digits to 4.5 to 1 (level AA of WCAG) in the colour system of the terminal.

    Lines and bars keep their colours, and so does text in colours that the terminal defines.
    """

    def __init__(self, get_color_system: Callable[[], str | None]) -> None:
        """`get_color_system` returns Rich's name of the terminal's colour system."""
        super().__init__()
        self._get_color_system = get_color_system

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        system, area = self._get_color_system() or "truecolor", _to_rich(background)
        result = segments
        for number, (text, style, control) in enumerate(segments):
            if style is None or style.color is None:
                continue
            readable_style = make_readable(style, area, system)
            if readable_style is not style and any(map(str.isalnum, text)):
                result = [*segments] if result is segments else result
                result[number] = Segment(text, readable_style, control)
        return result


@functools.lru_cache(64)
def _to_rich(background: Color) -> RichColor:
    return background.rich_color


@functools.lru_cache(4096)
def make_readable(style: Style, area: RichColor, color_system: str) -> Style:
    """Make the text colour of a style readable on the style's background, or on `area` if the style has none.

    The colour moves towards white or black, as little as necessary.
    """
    from edgechat.tui.render.contrast import COLOUR_SYSTEMS, MIN_TEXT_CONTRAST, compute_rgb_contrast

    colour = style.color
    background = area if style.bgcolor is None or style.bgcolor.is_default else style.bgcolor
    if style.reverse or colour is None or {colour.type, background.type} != {ColorType.TRUECOLOR}:
        return style
    system = COLOUR_SYSTEMS.get(color_system, COLOUR_SYSTEMS["256"])
    if style.dim:  # terminals dim text in different ways
        colour = dim_color(background, colour)
        style += Style(color=colour, dim=False)
    if compute_rgb_contrast(colour, background, system) >= MIN_TEXT_CONTRAST:
        return style
    white, black = RichColor.from_rgb(255, 255, 255), RichColor.from_rgb(0, 0, 0)
    end = max(white, black, key=lambda candidate: compute_rgb_contrast(candidate, background, system))
    start_rgb, end_rgb = colour.get_truecolor(), end.get_truecolor()
    for step in range(1, _N_STEPS):
        shade = RichColor.from_rgb(*(a + (b - a) * step / _N_STEPS for a, b in zip(start_rgb, end_rgb, strict=True)))
        if compute_rgb_contrast(shade, background, system) >= MIN_TEXT_CONTRAST:
            return style + Style(color=shade)
    return style + Style(color=end)
