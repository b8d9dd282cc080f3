"""Pin and delete conversations of the list, whether they are open or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.messages import ConversationsChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgechat.chat.messages import Conversation
    from edgechat.chat.session import Session
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.session_worker import SessionWorker


class ConversationActions:
    """Pins and deletes conversations. Changes to conversations that are not open do not wait for a reply."""

    def __init__(self, pane: ConversationPane, worker: SessionWorker) -> None:
        self._pane = pane
        self._worker = worker

    def toggle_pin(self, conversation: Conversation) -> None:
        """Pin an unpinned conversation, or unpin a pinned one."""
        is_pinned = not conversation.pinned

        def update_pin(session: Session) -> None:
            if session.conversation.id == conversation.id:
                session.pin(on=is_pinned)
            else:
                session.store.update_conversation(conversation.id, pinned=is_pinned)
            self._pane.post_message(ConversationsChanged())

        self._submit_job(conversation, update_pin)

    def delete(self, conversation: Conversation, start_new: Callable[[], object]) -> None:
        """Delete a conversation permanently. If it is open, call `start_new` first to leave it."""

        def delete(session: Session) -> None:
            session.store.delete_conversation(conversation.id)
            self._pane.post_message(ConversationsChanged())

        if self._pane.shows(conversation.id):
            start_new()
            self._worker.queue(delete)
        else:
            self._submit_job(conversation, delete)

    def _submit_job(self, conversation: Conversation, job: Callable[[Session], object]) -> None:
        """Queue `job` if it changes the open conversation; otherwise run it immediately."""
        submit = self._worker.queue if self._pane.shows(conversation.id) else self._worker.run_side_job
        submit(job)
