"""Start the terminal UI, and export conversations to files from within a chat."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

from edgechat.errors import EdgechatError

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.store import Store


def run_chat(**options: Any) -> int:
    """Run the terminal UI and return the exit code. Raises EdgechatError."""
    # The imports before the first frame create many objects but no garbage, so garbage collection would only delay the
    # frame. The chat screen enables it again after the frame.
    gc.disable()
    from edgechat import config
    from edgechat.cli.session_factory import prepare_session
    from edgechat.paths import history_file
    from edgechat.tui.app import ChatApp, run_app

    make_session, problems = prepare_session(allow_missing_model=True, **options)
    settings, _ = config.load()
    start_options = ("model", "continue_last", "conversation_id", "persona", "ephemeral")
    has_start_option = any(options.get(name) for name in start_options)
    is_first_run = settings.model == config.AUTO and not has_start_option and not history_file().exists()
    try:
        return run_app(ChatApp(make_session, [str(p) for p in problems], settings, export, is_first_run=is_first_run))
    finally:
        if is_first_run and not history_file().exists():
            _create_history()


def _create_history() -> None:
    """Create an empty history, so that the first-run screen appears only once, even if the user quit with Ctrl+Q."""
    from edgechat.cli.history_store import open_history

    with contextlib.suppress(EdgechatError, OSError):
        open_history().close()


def export(store: Store, conversation_id: str, file: Path) -> None:
    """Write a conversation to `file`, in the format of the file's suffix. Raises EdgechatError."""
    from edgechat.cli.history_files import FORMAT_BY_SUFFIX, export_text
    from edgechat.cli.output_files import write_private
    from edgechat.errors import UsageError
    from edgechat.store.sqlite import SqliteStore

    if not isinstance(store, SqliteStore):
        raise UsageError("Cannot export this conversation: it is not saved in the edgechat database.")
    export_format = FORMAT_BY_SUFFIX.get(file.suffix.lower().lstrip("."))
    if export_format is None:
        raise UsageError(f"Cannot export to {file.name}: the file name must end in .md, .html or .json.")
    write_private(file, export_text(store, [conversation_id], export_format))
