"""Crash report after an unexpected error in edgechat: a log file, and a message with its path."""

from __future__ import annotations

import traceback

from rich.text import Text

from edgechat import files, paths


def save_crash_report(error: Exception) -> Text:
    """Write the traceback of `error` to the crash log, and return a short message with the path of the log.

    If the log cannot be written, the message contains the traceback.
    """
    file = paths.cache_dir() / "crash.log"
    lines = traceback.format_exception(error)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file, "".join(lines).encode("utf-8", "replace"))
        details = f" Details: {file}. Engine log: {paths.log_file()}."
    except OSError:
        details = "\n" + "".join(lines)
    problem = lines[-1].strip()[:300]
    return Text(f"edgechat failed: {problem}\n\nYour conversation is saved: `edgechat -c` continues it.{details}")
