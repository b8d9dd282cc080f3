"""Edit text in the external editor that is set in $VISUAL or $EDITOR."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from edgechat.errors import UsageError


class Editor:
    """Runs the external editor, once, and passes signals to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_signalled = False

    def forward_signal(self, number: int) -> bool:
        """Send a signal to the running editor; return False if none is running. Thread-safe.

        SIGINT and SIGQUIT are not sent: they come from keys, and reach the editor without edgechat's help.
        """
        process = self._process
        if process is None:
            return False
        if number not in (signal.SIGINT, getattr(signal, "SIGQUIT", None)):
            self._is_signalled = True
            process.send_signal(number)
        return True

    def edit(self, text: str) -> str:
        """Open `text` in an external editor and return the edited text. Suspend the application before the call.

        If a signal ended the editor, return what it has written. Raises UsageError if no editor is found, or if the
        editor cannot be started or fails.
        """
        command = _find_editor()
        descriptor, name = tempfile.mkstemp(prefix="edgechat-", suffix=".md")
        file = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
            self._process = subprocess.Popen([*command, name])
            code = self._process.wait()
            if code and not self._is_signalled:
                raise UsageError(f"{command[0]} failed with exit code {code}; the text is unchanged")
            return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError as error:
            raise UsageError(
                f"Cannot start {command[0]}: {error.strerror or error}. Set another editor in $VISUAL or $EDITOR."
            ) from error
        finally:
            self._process = None
            file.unlink(missing_ok=True)


def _find_editor() -> list[str]:
    """Return the command of the editor without the name of a file. Raises UsageError if there is none."""
    configured_editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    fallback = next((name for name in ("sensible-editor", "nano", "vi", "notepad") if shutil.which(name)), None)
    try:
        command = [fallback] if fallback else []
        if configured_editor:
            command = shlex.split(configured_editor, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(f"Cannot parse $VISUAL or $EDITOR as a command: {configured_editor!r}: {error}") from None
    if not command:
        raise UsageError("No editor found. Set $EDITOR.")
    return command
