"""Shell commands that a model writes: the request, the checks before a command is shown or run, and the shell."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import sys
from typing import Any, Final, NamedTuple, NoReturn

from edgechat.errors import EngineError, UsageError, format_reason
from edgechat.terminal import escape_controls

MAX_COMMAND_CHARS: Final = 8000
"""Maximum length of a command in characters."""
_MAX_EXPLANATION_CHARS: Final = 300
_MAX_FOLDER_CHARS: Final = 80
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "command": {"type": "string"},
        "explanation": {"type": "string", "maxLength": _MAX_EXPLANATION_CHARS},
    },
    "required": ["command", "explanation"],
    "additionalProperties": False,
}
_INSTRUCTIONS: Final = (
    "Write one command for the shell {shell} on {system} that does what the user asks for. Reply with JSON: `command` "
    "is the command, without comments, without a prompt such as $, and without Markdown; `explanation` says in one "
    "short sentence what the command does. If no command can do it, `command` is empty and `explanation` says why. "
    "The name of the current folder is {folder}."
)


# Printable characters without a shape: marks that join or vary other characters, fillers, and an empty Braille cell.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class ShellCommand(NamedTuple):
    """A command and its explanation, as the model or the user wrote them."""

    text: str
    explanation: str

    @property
    def shown_text(self) -> str:
        """The command with escape sequences and invisible characters replaced by visible ones."""
        return escape_controls(self.text)

    @property
    def is_shown_exactly(self) -> bool:
        """Whether the shown text is the command itself. A command that looks different on the screen is never run."""
        has_shape = all(char in "\n\t" or char.isprintable() for char in self.text) and not _INVISIBLE.search(self.text)
        return has_shape and self.shown_text == self.text and "\ufffd" not in self.text


def make_command(text: str, explanation: str) -> ShellCommand:
    """Create a command from the fields of a reply.

    Line ends become newlines, and white space around the command is removed. Raises EngineError for an empty or a very
    long command.
    """
    text = text.replace("\r\n", "\n").strip(" \t\n")
    explanation = " ".join(escape_controls(explanation).split())[:_MAX_EXPLANATION_CHARS]
    if not text:
        raise EngineError(f"The model has no command for this. {explanation}".strip())
    if len(text) > MAX_COMMAND_CHARS:
        raise EngineError(f"The model's command has {len(text):,} characters; the limit is {MAX_COMMAND_CHARS:,}.")
    return ShellCommand(text, explanation)


def make_instructions() -> str:
    """Return the system prompt: it names the system, the shell and the current folder, and nothing else."""
    try:
        folder = os.path.basename(os.getcwd()) or os.sep  # noqa: PTH109, PTH119  (works on text)
    except OSError:  # the folder was deleted
        folder = "unknown"
    shell = os.path.splitext(os.path.basename(find_shell()[0]))[0]  # noqa: PTH119, PTH122
    return _INSTRUCTIONS.format(
        shell=shell, system=_describe_system(), folder=escape_controls(folder)[:_MAX_FOLDER_CHARS]
    )


def _describe_system() -> str:
    """Return the name of the operating system, on Linux with its distribution."""
    if sys.platform == "darwin":
        return "macOS"
    if sys.platform != "linux":
        return platform.system()
    try:
        return f"Linux ({platform.freedesktop_os_release()['NAME']})"
    except (OSError, KeyError):
        return "Linux"


def find_shell() -> list[str]:
    """Return the command line of the user's shell, to which the command is added as the last argument."""
    if sys.platform == "win32":
        for name in ("pwsh", "powershell"):
            if path := shutil.which(name):
                return [path, "-NoProfile", "-Command"]
        return [os.environ.get("COMSPEC", "cmd.exe"), "/c"]
    shell = os.environ.get("SHELL", "")
    is_usable = os.path.isabs(shell) and os.access(shell, os.X_OK)  # noqa: PTH117  (works on text)
    return [shell if is_usable else "/bin/sh", "-c"]


def run_command(command: ShellCommand) -> NoReturn:
    """Replace this process by the user's shell, which runs `command`, so that its exit code is that of the program.

    Call this only after the user confirmed exactly this command. Raises UsageError if the command contains characters
    that are not shown, or if the shell cannot be started.
    """
    if not command.is_shown_exactly:
        raise UsageError("The command contains characters that are not shown on the screen, and is not run.")
    arguments = [*find_shell(), command.text]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform == "win32":
            import subprocess

            # cmd.exe has its own rules for quotes, so it gets the command as it is.
            is_cmd = arguments[-2] == "/c"
            sys.exit(subprocess.call(f'"{arguments[0]}" /d /s /c "{command.text}"' if is_cmd else arguments))
        # Python ignores these signals, and a new program would inherit that.
        for name in ("SIGPIPE", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execv(arguments[0], arguments)  # noqa: S606  (the user's shell)
    except OSError as error:
        raise UsageError(f"Cannot start the shell {arguments[0]}: {format_reason(error)}. Set SHELL.") from error
