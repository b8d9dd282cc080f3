"""Base class of the modal screens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from textual.await_complete import AwaitComplete
from textual.css.query import NoMatches
from textual.dom import DOMNode
from textual.screen import ModalScreen

from edgechat.tui import keys, textual_private
from edgechat.tui.key_names import format_key

if TYPE_CHECKING:
    from textual.message import Message

T = TypeVar("T")


class Modal(ModalScreen[T], Generic[T]):
    """Modal screen that can be dismissed only once: a key that arrives while it closes cannot close another screen."""

    def key_label(self, *binding_ids: str) -> str:
        """Return the label of the first key of each binding of this screen, of the chat screen or of the application.

        For example "Alt+Left/Right" for two bindings.
        """
        owners = [type(self), *type(self).__mro__, type(self.app), *map(type, self.app.screen_stack[:1])]
        declared = keys.list_declared_bindings(*(owner for owner in owners if issubclass(owner, DOMNode)))
        overrides: Mapping[str, str] = getattr(self.app, "key_overrides", {})
        return keys.format_labels(binding_ids, {binding.id: binding.keys for binding in declared}, overrides)

    def format_keys(self, labels: Mapping[str, str]) -> str:
        """Format a line of keys and labels. `labels` maps the ID of a binding, or a fixed key, to a label."""
        return "   ".join(f"{self.key_label(name) or format_key(name)}: {label}" for name, label in labels.items())

    def dismiss(self, result: T | None = None) -> AwaitComplete:
        """Close the screen, and pass `result` to the callback of `push_screen`."""
        return super().dismiss(result) if self.is_current else AwaitComplete()

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)
        except NoMatches:  # a screen that is closed while it opens does not get all its widgets
            if not textual_private.is_being_removed(self):
                raise
