"""Contrast of colours, as the Web Content Accessibility Guidelines define it, and colours that keep it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Final

from rich.color import Color, ColorSystem

MIN_TEXT_CONTRAST: Final = 4.5
"""Minimum contrast of text for level AA of the guidelines."""
_MIN_QUIET_CONTRAST: Final = 5.0
"""Minimum contrast of quiet text; above the guidelines' minimum, because colours are rounded."""
_MIN_AREA_CONTRAST: Final = 1.4
"""Minimum contrast between selected text and the area around it."""
_MAX_DARK_CHANNEL: Final = 0.04045
COLOUR_SYSTEMS: Final = {
    "truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "standard": ColorSystem.STANDARD,
}  # fmt: skip
"""What terminals can show: 16.7 million, 256 or 16 colours. A colour becomes the nearest one that is there."""


def compute_contrast(first: str, second: str, system: ColorSystem) -> float:
    """Return the contrast, from 1 to 21, of two colours such as "#102030" in a terminal with these colours."""
    return compute_rgb_contrast(Color.parse(first), Color.parse(second), system)


def compute_rgb_contrast(first: Color, second: Color, system: ColorSystem) -> float:
    """Return the contrast, from 1 to 21, of two colours in a terminal with these colours."""
    luminances = sorted(compute_luminance(colour.downgrade(system)) for colour in (first, second))
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


def compute_luminance(colour: Color) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = [channel / 255 for channel in colour.get_truecolor()]
    red, green, blue = (c / 12.92 if c <= _MAX_DARK_CHANNEL else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@functools.lru_cache(maxsize=8)
def choose_list_colours(foreground: str, background: str, surface: str, system: ColorSystem) -> tuple[str, str]:
    """Return the colours of text and of quiet text in lists, which both areas of a theme are behind.

    The text is the foreground, if that is readable; quiet text is as close to the background as is readable.
    """
    from textual.color import Color as BlendedColour

    areas, text = (background, surface), foreground
    if _find_least(text, areas, system) < _MIN_QUIET_CONTRAST:
        text = max(("#ffffff", "#000000"), key=lambda colour: _find_least(colour, areas, system))
    blends = (BlendedColour.parse(background).blend(BlendedColour.parse(text), n / 100) for n in range(60, 100, 5))
    readable = (c.hex[:7] for c in blends if _find_least(c.hex[:7], areas, system) >= _MIN_QUIET_CONTRAST)
    quiet = next(readable, text)
    return (foreground if _find_least(foreground, areas, system) >= MIN_TEXT_CONTRAST else quiet), quiet


def _find_least(colour: str, areas: Sequence[str], system: ColorSystem) -> float:
    """Return the least contrast of a colour with one of several areas."""
    return min(compute_contrast(colour, area, system) for area in areas)


def choose_selection_colours(variables: Mapping[str, str], system: ColorSystem) -> tuple[str, str]:
    """Return the colours of selected text and of the area behind it, for the CSS variables of a theme.

    The text is readable, and the area differs from the background, in a terminal with these colours.
    """
    areas = [variables[name][:7] for name in ("background", "surface", "panel") if name in variables]
    candidates = [variables[name][:7] for name in ("primary", "accent", "secondary", "foreground") if name in variables]
    for background in [*candidates, "#0000ff", "#ffff00"]:
        for text in ("#ffffff", "#000000"):
            if compute_contrast(text, background, system) >= MIN_TEXT_CONTRAST and all(
                compute_contrast(background, area, system) >= _MIN_AREA_CONTRAST for area in areas
            ):
                return text, background
    return variables["background"][:7], variables["foreground"][:7]
