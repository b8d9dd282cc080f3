"""Keys and clicks that open the passages of documents in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.errors import UsageError
from edgechat.tui import passage_items
from edgechat.tui.messages import PassagesRequested
from edgechat.tui.render.palette import ALL_PASSAGES

if TYPE_CHECKING:
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.render.entries import MessageEntry


class PassageActions:
    """Requests the panel with the passages that a reply cites, or that belong to a user message."""

    def __init__(self, pane: ConversationPane) -> None:
        self._pane = pane

    def open_citation(self, entry: MessageEntry, index: int) -> None:
        """Open the passages of one citation of a reply, or with `ALL_PASSAGES` those of a user message."""
        passage_set = entry.passage_set
        if index != ALL_PASSAGES:
            items = passage_items.list_cited(entry.citations)
            first = passage_items.find_citation(items, index)
            self._pane.screen.post_message(PassagesRequested(items, first))
        elif passage_set is not None and passage_set.passages:
            items = passage_items.list_all(passage_set)
            self._pane.screen.post_message(PassagesRequested(items, shows_list=True))

    def open(self, entry: MessageEntry | None) -> None:
        """Open the passages that a reply cites; for other messages, open those of the question.

        Raises UsageError if there are none.
        """
        if entry is None:
            return
        if entry.citations:
            self.open_citation(entry, 0)
            return
        messages = self._pane.messages
        above = messages[: messages.index(entry) + 1]
        question = next((e for e in reversed(above) if e.kind == "user"), None)
        if question is None or question.passage_set is None or not question.passage_set.passages:
            raise UsageError("This message has no passages of documents. Choose documents with /docs, and ask again.")
        self.open_citation(question, ALL_PASSAGES)
