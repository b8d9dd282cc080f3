"""What is to be said: what is typed, what goes along, what it is said instead of, what waits, and none of it lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.messages import OutgoingMessage

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.screens.chat import ChatScreen
    from edgechat.tui.widgets.prompt import PromptInput, PromptState


class Composer:
    """Of one screen; its text is in the input."""

    def __init__(self, chat: ChatScreen) -> None:
        self._chat = chat
        self.editing: str | None = None
        """The message that is said differently with the next Enter."""
        self.attached: list[Path] = []
        self._queued: list[OutgoingMessage] = []
        self._before_editing = ""

    @property
    def _prompt(self) -> PromptInput:
        return self._chat.prompt

    # What is said next

    def take(self, text: str, held: PromptState | None) -> OutgoingMessage:
        """What Enter means; `held` is what the input had for it."""
        from edgechat.chat import commands

        missing = commands.missing_files(text)
        if missing:
            self._chat.app.notify(f"@{missing[0]} is no file here: it is sent as a word")
        files = tuple(dict.fromkeys((*self.attached, *commands.attached_files(text))))
        saying = OutgoingMessage(text, files, self.editing, held)
        if self.editing is not None and self._before_editing:
            self._prompt.load(self._before_editing)
        self.editing, self.attached, self._before_editing = None, [], ""
        return saying

    def wait(self, saying: OutgoingMessage) -> None:
        """Say it after what is answered now."""
        self._queued.append(saying)

    def next(self) -> OutgoingMessage | None:
        """What waited the longest."""
        return self._queued.pop(0) if self._queued else None

    def edit(self, entry: MessageEntry) -> None:
        """Have a message said differently with the next Enter."""
        self._before_editing = self._prompt.full_text if self.editing is None else self._before_editing
        self.editing = entry.message.id
        self._prompt.load(entry.text)
        self._prompt.focus()

    def give_up_edit(self) -> None:
        """What was typed before comes back."""
        self.editing = None
        self._prompt.load(self._before_editing)
        self._before_editing = ""

    def forget(self) -> None:
        """Another conversation is on the screen."""
        self.editing, self.attached = None, []

    # Nothing is lost

    def take_back(self, saying: OutgoingMessage) -> None:
        """What could not be said can be sent again, just as it was."""
        self.editing = saying.editing
        self.attached = list(dict.fromkeys((*self.attached, *saying.files)))
        if saying.held is not None and not self._prompt.text:
            self._prompt.restore(saying.held)
        else:
            self.give_back(saying.text)

    def give_back(self, text: str) -> None:
        """Put words into the input, after what is there."""
        self._prompt.load("\n\n".join(t for t in (self._prompt.full_text, text) if t))

    def put_aside(self) -> bool:
        """What waits goes back to the input; False if nothing did."""
        waiting, self._queued = self._queued, []
        for saying in waiting:
            self.take_back(saying)
        return bool(waiting)

    def put_text_aside(self) -> None:
        """Another conversation is gone to: what is typed here stays here, as far as anything does."""
        talker = self._chat.app.worker
        is_kept = talker.session is not None and talker.session.store.is_persistent
        if is_kept and self._key and self._prompt.text:
            talker.keep_draft(self._key, self._prompt.full_text)
            self._prompt.load("")

    def keep(self) -> None:
        """Write down what waits, and what is typed."""
        self._chat.app.worker.keep_draft(self._key, self._unsent)

    def begin(self, conversation_id: str) -> None:
        """A new conversation has a name of its own from now on."""
        self._chat.app.worker.keep_draft("", "")
        if self._unsent:
            self._chat.app.worker.keep_draft(conversation_id, self._unsent)

    @property
    def _unsent(self) -> str:
        return "\n\n".join(t for t in (*(s.text for s in self._queued), self._prompt.full_text) if t)

    @property
    def _key(self) -> str:
        """Where the draft of this conversation is; of all new ones, "" is."""
        view = self._chat.view
        return view.conversation.id if view is not None and view.path else ""

    @property
    def words(self) -> list[str]:
        """What goes along with the next message, or comes after it, for the live line."""
        from edgechat.chat.messages import first_line

        found = ["editing (Esc: not)"] if self.editing is not None else []
        if self._queued:
            found.append(f"next: {first_line(self._queued[0].text, 20)}")
        if self.attached:
            found.append(f"{len(self.attached)} attached")
        return found
