"""Compute the contrast of colours by the Web Content Accessibility Guidelines, and choose readable colours."""

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
"""Minimum contrast between the background of selected text and the area around it."""
_MAX_DARK_CHANNEL: Final = 0.04045
COLOUR_SYSTEMS: Final = {
    "truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "standard": ColorSystem.STANDARD,
}  # fmt: skip
"""Colour systems of terminals: 16.7 million, 256 or 16 colours. A terminal shows the nearest colour that it has."""


def compute_contrast(first: str, second: str, system: ColorSystem) -> float:
    """Return the contrast, from 1 to 21, of two colours such as "#102030" on a terminal with colour system `system`."""
    return compute_rgb_contrast(Color.parse(first), Color.parse(second), system)


def compute_rgb_contrast(first: Color, second: Color, system: ColorSystem) -> float:
    """Return the contrast, from 1 to 21, of two colours on a terminal with colour system `system`."""
    luminances = sorted(compute_luminance(colour.downgrade(system)) for colour in (first, second))
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


def compute_luminance(colour: Color) -> float:
    """Return the relative luminance of a colour, from 0 to 1, as WCAG 2.2 defines it."""
    channels = [channel / 255 for channel in colour.get_truecolor()]
    red, green, blue = (c / 12.92 if c <= _MAX_DARK_CHANNEL else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@functools.lru_cache(maxsize=8)
def choose_list_colours(foreground: str, background: str, surface: str, system: ColorSystem) -> tuple[str, str]:
    """Choose the colours of normal and quiet text in lists, readable on both `background` and `surface`.

    Normal text has the foreground colour if that is readable. Quiet text has the readable colour that is nearest to
    the background.
    """
    from textual.color import Color as BlendedColour

    areas, text = (background, surface), foreground
    if _compute_min_contrast(text, areas, system) < _MIN_QUIET_CONTRAST:
        text = max(("#ffffff", "#000000"), key=lambda colour: _compute_min_contrast(colour, areas, system))
    blends = (BlendedColour.parse(background).blend(BlendedColour.parse(text), n / 100) for n in range(60, 100, 5))
    readable = (c.hex[:7] for c in blends if _compute_min_contrast(c.hex[:7], areas, system) >= _MIN_QUIET_CONTRAST)
    quiet = next(readable, text)
    return (foreground if _compute_min_contrast(foreground, areas, system) >= MIN_TEXT_CONTRAST else quiet), quiet


def _compute_min_contrast(colour: str, areas: Sequence[str], system: ColorSystem) -> float:
    """Return the lowest contrast between a colour and any of several areas."""
    return min(compute_contrast(colour, area, system) for area in areas)


def choose_selection_colours(variables: Mapping[str, str], system: ColorSystem) -> tuple[str, str]:
    """Choose the colours of selected text and of the area behind it from the CSS variables of a theme.

    On a terminal with colour system `system`, the text is readable and the area differs from the theme's backgrounds.
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
