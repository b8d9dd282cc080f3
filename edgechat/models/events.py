"""Progress events of loading a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec


class ModelLoadProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of testing a backend or of loading the model's weights."""

    phase: Literal["testing", "loading"]
    message: str
    """Status text that is shown to the user."""
    fraction: float | None = None
    """Fraction of the weights that is loaded, from 0 to 1; None if the fraction is unknown."""


class CpuFallback(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU failed, and the model was loaded with the CPU, which generates or continues the replies."""

    notice: str


LoadCallback = Callable[[ModelLoadProgressed], None]
