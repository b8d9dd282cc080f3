"""Progress events that are sent while a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec


class ModelLoadProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """Event while a backend is tested or the model's weights are loaded."""

    phase: Literal["testing", "loading"]
    message: str
    """Status line for the user."""
    fraction: float | None = None
    """Loaded fraction of the weights, from 0 to 1; None if unknown."""


LoadCallback = Callable[[ModelLoadProgressed], None]
