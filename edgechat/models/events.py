"""Events of loading a model, for progress displays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec


class ModelLoadProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """A backend is being tested, or the model's weights are being loaded."""

    phase: Literal["testing", "loading"]
    message: str
    """Status line for the user."""
    fraction: float | None = None
    """Loaded part of the weights, from 0 to 1; None if unknown."""


LoadCallback = Callable[[ModelLoadProgressed], None]
