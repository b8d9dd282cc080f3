"""Base class of the chat screen: adds a sidebar with the list of conversations to the open conversation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from textual.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textual.widget import Widget

    from edgechat.chat.store import ConversationSummary
    from edgechat.tui.actions import Actions
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.messages import ConversationsChanged
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.sidebar import Sidebar


class SidebarScreen(Screen[None]):
    """Screen with a conversation pane, and with a sidebar that is created when it is first shown."""

    def __init__(
        self, pane: ConversationPane, worker: SessionWorker, get_key_overrides: Callable[[], Mapping[str, str]]
    ) -> None:
        super().__init__()
        self.pane = pane
        self._worker = worker
        self._get_key_overrides = get_key_overrides
        self.sidebar: Sidebar | None = None
        self._focused_before_list: Widget | None = None

    @functools.cached_property
    def actions(self) -> Actions:
        """Implementation of commands and keys; its module is imported on first access."""
        from edgechat.tui.actions import Actions

        return Actions(self.pane, self._worker)

    def toggle_sidebar(self) -> None:
        """Show or hide the list of conversations."""
        if self.sidebar is None:
            from edgechat.tui.widgets.sidebar import Sidebar

            pane, self._focused_before_list = self.pane, self.focused
            current_id = lambda: pane.view.conversation.id if pane.view is not None else None  # noqa: E731
            self.sidebar = Sidebar(self._list_conversations, current_id, self._get_key_overrides)
            self.set_styles("layers: default overlay;")  # a style sheet would delay the first frame
            self.mount(self.sidebar, before=0)
            self.call_after_refresh(self.sidebar.refresh_list)
            self.call_after_refresh(self.sidebar.focus_filter)
        elif self.sidebar.display:
            self.sidebar.action_leave()
        else:
            self._focused_before_list = self.focused
            self.sidebar.display = True
            self.sidebar.refresh_list()
            self.sidebar.focus_filter()

    def on_resize(self) -> None:
        if self.sidebar is not None:
            self.sidebar.adapt()

    def _list_conversations(self) -> Sequence[ConversationSummary] | None:
        from edgechat.tui.widgets.sidebar import MAX_CONVERSATIONS

        session = self._worker.session
        return session.store.list_conversations(limit=MAX_CONVERSATIONS) if session is not None else None

    def on_conversations_changed(self, _message: ConversationsChanged) -> None:
        if self.sidebar is not None and self.sidebar.display:
            self.sidebar.refresh_list()

    def on_sidebar_conversation_selected(self, message: Sidebar.ConversationSelected) -> None:
        from edgechat.chat.commands import Destination

        self.actions.go_to(Destination(message.conversation_id))
        self.pane.prompt.focus()
        self._focused_before_list = self.pane.prompt

    def on_sidebar_pin_toggled(self, message: Sidebar.PinToggled) -> None:
        self.actions.conversations.toggle_pin(message.conversation)

    def on_sidebar_delete_confirmed(self, message: Sidebar.DeleteConfirmed) -> None:
        from edgechat.chat.commands import Destination

        self.actions.conversations.delete(message.conversation, lambda: self.actions.go_to(Destination()))

    def on_sidebar_closed(self) -> None:
        (self._focused_before_list or self.pane.prompt).focus()
