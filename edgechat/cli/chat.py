"""The chat itself: what it is given by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgechat import config
from edgechat.cli.output_files import write_private
from edgechat.cli.session_factory import session_maker
from edgechat.errors import UsageError
from edgechat.paths import history_file
from edgechat.tui.app import ChatApp, run_app

if TYPE_CHECKING:
    from edgechat.chat.store import Store


def run_chat(**options: Any) -> int:
    """Hold a conversation on this terminal; returns the exit code. Raises EdgechatError and click's errors."""
    make_session, problems = session_maker(**options)
    settings, _ = config.load()
    is_named = any(options.get(name) for name in ("model", "continue_last", "conversation_id", "persona", "ephemeral"))
    is_first = settings.model == config.AUTO and not is_named and not history_file().exists()
    app = ChatApp(make_session, [str(p) for p in problems], settings, export, is_first=is_first)
    return run_app(app)


def export(store: Store, conversation_id: str, file: Path) -> None:
    """Write a conversation to a file, whose suffix says in which form. Raises EdgechatError."""
    from edgechat.cli.history import KINDS, export_text
    from edgechat.store.sqlite import SqliteStore

    if not isinstance(store, SqliteStore):
        raise UsageError("this conversation is kept where nothing can be exported from")
    kind = (KINDS | {"txt": "md"}).get(file.suffix.lower().lstrip("."))
    if kind is None:
        raise UsageError(f"{file.name}: a conversation is written as .md, .html or .json")
    write_private(file, export_text(store, [conversation_id], kind))
