"""Unsent message of the line-by-line chat: offered for editing at the prompt, and saved when a signal arrives."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from edgechat.chat import unsent_messages
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgechat.chat.session import Session


class UnsentLine:
    """Loads and saves the unsent message of the open conversation, which the terminal UI shares.

    Editing the last line needs GNU readline. Without readline, the terminal edits the line, and the program cannot read
    it before the user presses Return.
    """

    def __init__(self, session: Session, prompt: str) -> None:
        """`prompt` is printed before each line."""
        self._session = session
        self._prompt = prompt
        self._offered_ids: set[str] = set()

    @property
    def _conversation_id(self) -> str:
        return self._session.conversation.id if self._session.tree.path else ""

    def offer(self) -> list[str]:
        """Print the unsent message once, insert its last line into the input line, and return the other lines."""
        conversation_id = self._conversation_id
        if conversation_id in self._offered_ids or not self._session.store.is_persistent:
            return []
        self._offered_ids.add(conversation_id)
        text = unsent_messages.load(conversation_id).rstrip("\n")
        with contextlib.suppress(ImportError):
            import readline

            *lines, last_line = text.split("\n")
            for line in lines:
                click.echo(f"{self._prompt}{escape_controls(line)}\\")

            def insert() -> None:
                readline.set_startup_hook(None)
                readline.insert_text(last_line)

            if text:
                readline.set_startup_hook(insert)
                return lines
        if text:
            click.echo(f"(Unsent message: {escape_controls(text)})")
        return []

    def clear(self) -> None:
        """Delete the saved message after it was offered and sent."""
        if self._conversation_id in self._offered_ids:
            unsent_messages.save(self._conversation_id, "")

    def save(self, lines: Sequence[str]) -> None:
        """Save the lines that were entered, and the line that is being edited, if conversations are saved."""
        line = ""
        with contextlib.suppress(ImportError):
            import readline

            line = readline.get_line_buffer()
        text = "\n".join([*lines, line])
        if text.strip() and self._session.store.is_persistent:
            unsent_messages.save(self._conversation_id, text)
