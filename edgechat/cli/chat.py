"""Start the terminal UI from the command line, and export conversations from it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.store import Store


def run_chat(**options: Any) -> int:
    """Run the terminal UI and return the exit code. Raises EdgechatError and click's errors."""
    # The first frame waits for imports, which create many objects and no garbage. The chat screen enables the
    # collector again after that frame.
    gc.disable()
    from edgechat import config
    from edgechat.cli.session_factory import session_maker
    from edgechat.paths import history_file
    from edgechat.tui.app import ChatApp, run_app

    make_session, problems = session_maker(**options)
    settings, _ = config.load()
    is_named = any(options.get(name) for name in ("model", "continue_last", "conversation_id", "persona", "ephemeral"))
    is_first_run = settings.model == config.AUTO and not is_named and not history_file().exists()
    return run_app(ChatApp(make_session, [str(p) for p in problems], settings, export, is_first_run=is_first_run))


def export(store: Store, conversation_id: str, file: Path) -> None:
    """Write a conversation to a file, whose suffix selects the format. Raises EdgechatError."""
    from edgechat.cli.history import KINDS, export_text
    from edgechat.cli.output_files import write_private
    from edgechat.errors import UsageError
    from edgechat.store.sqlite import SqliteStore

    if not isinstance(store, SqliteStore):
        raise UsageError("Only conversations in edgechat's database can be exported")
    kind = (KINDS | {"txt": "md"}).get(file.suffix.lower().lstrip("."))
    if kind is None:
        raise UsageError(f"{file.name}: conversations are exported as .md, .html or .json")
    write_private(file, export_text(store, [conversation_id], kind))
