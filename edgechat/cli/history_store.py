"""The user's conversation store. Deleting a conversation also deletes its cached prefixes and unsent message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
