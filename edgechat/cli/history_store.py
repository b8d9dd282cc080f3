"""The user's conversation store. Deleting a conversation also deletes its cached prefixes and unsent message."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from edgechat.errors import MAX_MESSAGE_CHARS
from edgechat.humanize import shorten
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgechat.store.sqlite import SqliteStore


def open_history() -> SqliteStore:
    """Open the user's conversation store. Raises StoreError."""
    from edgechat.store import open_store

    return open_store(on_deleted=[delete_conversation_files])


def delete_conversation_files(conversation_id: str) -> None:
    """Delete the cached prefixes and the unsent message of a conversation."""
    from edgechat import paths
    from edgechat.chat import unsent_messages
    from edgechat.prefix.disk_tier import delete_conversation

    delete_conversation(paths.prefix_dir(), conversation_id)
    unsent_messages.save(conversation_id, "")


@contextlib.contextmanager
def open_readable_store() -> Iterator[SqliteStore]:
    """Open the conversation store, print its notices, and close the store on exit.

    Raises StoreError if the database cannot be opened or read.
    """
    from edgechat.errors import StoreError

    store = open_history()
    try:
        if not store.is_readable:
            raise StoreError(store.read_only_reason)
        _print_notes([*store.take_notices(), *([store.read_only_reason] if store.read_only_reason else [])])
        yield store
    finally:
        _print_notes(store.take_notices())
        store.close()


def _print_notes(notes: Sequence[str]) -> None:
    from edgechat.cli.progress import echo_note  # imported here, because the terminal UI starts without click

    for note in notes:
        echo_note(f"edgechat: {escape_controls(shorten(note, MAX_MESSAGE_CHARS))}")


def format_one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))
