"""Edit text and files in the external editor that is set in $VISUAL or $EDITOR."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from edgechat.errors import UsageError, format_reason

_FALLBACK_EDITORS: Final = ("nano", "vi", "vim", "notepad")
# Editors and pagers that open a file at the line of an option such as +12.
_EDITORS_WITH_LINES: Final = frozenset(
    {"vi", "vim", "nvim", "view", "gvim", "nano", "pico", "emacs", "emacsclient", "less", "kak", "micro", "joe", "mg"}
)


class Editor:
    """Runs the external editor once, and forwards signals to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_signalled = False

    def forward_signal(self, number: int) -> bool:
        """Send a signal to the running editor; return False if no editor is running. Thread-safe.

        SIGINT and SIGQUIT are not forwarded, because the terminal already sends them to the editor when a key is
        pressed.
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

        If a signal ended the editor, return the text that it has written. Raises UsageError if no editor is found, or
        if the editor cannot be started or fails.
        """
        try:
            descriptor, name = tempfile.mkstemp(prefix="edgechat-", suffix=".md")
        except OSError as error:
            raise UsageError(
                f"Cannot create a file for the editor: {format_reason(error)}. Set TMPDIR to a folder with free space."
            ) from error
        file = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
            self.edit_file(file)
            return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError as error:
            raise UsageError(f"Cannot edit the text: {format_reason(error)}. The text is unchanged.") from error
        finally:
            file.unlink(missing_ok=True)

    def open_at(self, file: Path, line: int) -> None:
        """Open `file` at a line, from 1, in an external editor that can do so; in another editor, open it at the start.

        Raises UsageError as `edit_file` does, and if the file does not exist.
        """
        if not file.is_file():
            raise UsageError(f"{file} does not exist any more. Update the collection to see its current documents.")
        self.edit_file(file, line)

    def edit_file(self, file: Path, line: int = 0) -> None:
        """Open `file` in an external editor, and wait until the editor ends or a signal has ended it.

        If `line` is not 0, open it at this line, if the editor is known to have an option for it. Raises UsageError if
        no editor is found, or if the editor cannot be started or fails.
        """
        command = find_editor()
        try:
            self._process = subprocess.Popen([*command, *_format_line_option(command[0], line), str(file)])
            code = self._process.wait()
        except OSError as error:
            raise UsageError(
                f"Cannot start the editor {command[0]}: {error.strerror or error}. "
                "Set $VISUAL or $EDITOR to the command of another editor."
            ) from error
        finally:
            self._process = None
        if code and not self._is_signalled:
            end = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise UsageError(f"The editor {command[0]} {end}; the text is unchanged.")


def _format_line_option(editor: str, line: int) -> list[str]:
    name = Path(editor).stem
    return [f"+{line}"] if line and name in _EDITORS_WITH_LINES else []


def find_editor() -> list[str]:
    """Return the command of the editor, without the name of a file. Raises UsageError if there is none.

    The command is the value of $VISUAL or $EDITOR, or else an installed editor. Debian's `sensible-editor` is not used,
    because it asks the user to choose an editor when it runs for the first time.
    """
    configured_editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        command = shlex.split(configured_editor, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(f"Cannot parse $VISUAL or $EDITOR as a command: {configured_editor!r}: {error}") from None
    fallback = next((name for name in _FALLBACK_EDITORS if shutil.which(name)), "")
    if not command and not fallback:
        raise UsageError("No editor found. Set $VISUAL or $EDITOR to the command of an editor.")
    return command or [fallback]
