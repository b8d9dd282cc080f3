"""Base class of the modal screens."""

from __future__ import annotations

from typing import Generic, TypeVar

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen

T = TypeVar("T")


class Modal(ModalScreen[T], Generic[T]):
    """Modal screen that closes only itself: a second dismissal, by keys that arrive while it closes, has no effect."""

    def dismiss(self, result: T | None = None) -> AwaitComplete:
        """Close the screen, and pass `result` to the callback of `push_screen`."""
        return super().dismiss(result) if self.is_current else AwaitComplete()
