"""The exceptions that edgechat raises on purpose.

    EdgechatError                 exit code 4 unless a subclass says otherwise
    |- UsageError            (2)  what the user asked for makes no sense
    |- SettingsError         (2)  a setting that cannot be used
    |- InvalidFileError      (4)  a settings or state file that cannot be read or parsed
    |- ModelFileError        (3)  a file that is not a usable model
    |- TemplateError         (3)  a chat template that fails, hangs or reaches out of its sandbox
    |- RuntimeLoadError      (4)  no native bundle, or none of its backends works here
    |- GrammarError          (2)  a format of answers that cannot be enforced
    |- EngineError           (4)  the engine refused or failed a request
    |  |- ComputeError       (4)  a computation failed
    |  `- EngineDiedError    (4)  the engine process is gone
    |- StoreError            (4)  conversations that cannot be read or written
    |  |- DamagedDatabaseError       (4)  a database that is not one any more
    |  `- NotFoundError          (2)  a conversation or message that is not there
    |- AttachmentError       (2)  a file that cannot go with a message
    |- ImportRefusedError    (2)  a file that holds no conversations we can read
    |- CatalogueError        (2)  a catalogue of models that cannot be used, or a model that it does not know
    |- DownloadError         (4)  a file that did not arrive: no room, a wrong hash, cancelled
    |- HubError              (6)  the hub, or the network before it, refused or did not answer
    |- ContextOverflowError  (5)  a prompt longer than the context
    `- PlanError             (5)  a model that does not fit in memory

Messages say what happened, with which numbers, and what to do next; they are shown to people as they are.
"""

from __future__ import annotations

from typing import ClassVar


class EdgechatError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code: ClassVar[int] = 4


class UsageError(EdgechatError):
    """What the user asked for makes no sense."""

    exit_code = 2


class SettingsError(EdgechatError):
    """A setting that cannot be used."""

    exit_code = 2


class InvalidFileError(EdgechatError):
    """Raised when a TOML or JSON file cannot be read, decoded or parsed."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} {reason}")
        self.where = where
        """The file's path, followed by `:LINE` where the line is known."""
        self.reason = reason


class ModelFileError(EdgechatError):
    """A file that is missing, unreadable, damaged, or not a model edgechat can use."""

    exit_code = 3


class TemplateError(EdgechatError):
    """A chat template that fails, runs too long, takes too much memory, or is forbidden."""

    exit_code = 3


class GrammarError(EdgechatError):
    """A format that answers are to have and that cannot be enforced; the message names what of it."""

    exit_code = 2


class RuntimeLoadError(EdgechatError):
    """The native bundle is missing or damaged, or no backend of it works on this machine."""


class EngineError(EdgechatError):
    """The engine refused or failed a request; it is still alive."""


class ComputeError(EngineError):
    """llama.cpp, or a device that it computes with, failed in the middle of it."""


class EngineDiedError(EngineError):
    """The engine process is gone; the message names the signal or exit code and the last log lines."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        """What it ended with, a signal as a negative number; None if it was never there, or is not known."""


class StoreError(EdgechatError):
    """Conversations cannot be read or written: no space, a locked or read-only database, an unknown id."""


class DamagedDatabaseError(StoreError):
    """The database is damaged; the message says how to get out of it what can be read."""


class NotFoundError(StoreError):
    """A conversation or a message that is not there, perhaps because another process deleted it."""

    exit_code = 2


class AttachmentError(EdgechatError):
    """A file that cannot go with a message."""

    exit_code = 2


class ImportRefusedError(EdgechatError):
    """A file that holds no conversations we can read; nothing of it was imported."""

    exit_code = 2


class CatalogueError(EdgechatError):
    """A catalogue of models that cannot be used; the message names the file, and the key or the line."""

    exit_code = 2


class DownloadError(EdgechatError):
    """A file that did not arrive; what of it is good is kept, and the message says how to go on."""


class HubError(EdgechatError):
    """The hub or another server refused, or could not be reached."""

    exit_code = 6


class ContextOverflowError(EdgechatError):
    """A prompt that does not fit in the context; the message names both lengths in tokens."""

    exit_code = 5


class PlanError(EdgechatError):
    """A model that does not fit in the memory of this machine."""

    exit_code = 5


def error_class(name: str) -> type[EdgechatError]:
    """The error class called `name`, for errors that crossed a process boundary; EngineError if unknown."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, EdgechatError):
        return found
    return EngineError
