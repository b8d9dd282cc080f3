"""Exceptions with messages for the user. The numbers are the exit codes of commands that end with the exception.

    EdgechatError              (4)
    |- UsageError              (2)
    |- DeclinedError           (1)
    |- SettingsError           (2)
    |- InvalidFileError        (4)
    |- AgentNotFoundError      (127)
    |- ModelFileError          (3)
    |  `- ModelCrashError      (3)
    |- TemplateError           (3)
    |- GrammarError            (2)
    |- RuntimeLoadError        (4)
    |- EngineError             (4)
    |  |- BackendMismatchError (4)
    |  |- ComputeError         (4)
    |  |- DrafterError         (4)
    |  |- RequestCancelledError (4)
    |  |- LocalSocketError     (4)
    |  `- EngineDiedError      (4)
    |- StoreError              (4)
    |  |- DamagedDatabaseError (4)
    |  `- NotFoundError        (2)
    |- AttachmentError         (2)
    |  `- AttachmentTooLargeError (5)
    |- DocumentError           (2)
    |  |- UnreadableFileError  (2)
    |  `- DamagedCollectionError (4)
    |- ImportRefusedError      (2)
    |- CatalogueError          (2)
    |- DownloadError           (4)
    |- HubError                (6)
    |- RemoteError             (6)
    |  |- RemoteSetupError     (2)
    |  `- RemoteStatusError    (6)
    |- ContextOverflowError    (5)
    `- PlanError               (5)

A message states what happened, the numbers involved, and what to do next. Front ends show it unchanged; `str` limits
its length.
"""

from __future__ import annotations

import os
from typing import ClassVar, Final

from edgechat.humanize import shorten

MAX_MESSAGE_CHARS: Final = 1000
"""Maximum length of a message for the user. Messages may contain text from files and from servers."""


class EdgechatError(Exception):
    """Base class of all errors with a message for the user."""

    exit_code: ClassVar[int] = 4
    """Exit code of a command that ends with this error."""
    max_chars: ClassVar[int] = MAX_MESSAGE_CHARS
    """Maximum length of the message; the middle of a longer message is omitted."""

    def __str__(self) -> str:
        return shorten(super().__str__(), self.max_chars)


class UsageError(EdgechatError):
    """Raised when a command's arguments or input are invalid."""

    exit_code = 2


class DeclinedError(EdgechatError):
    """Raised when the user does not confirm a deletion with y."""

    exit_code = 1


class SettingsError(EdgechatError):
    """Raised when a setting or persona is invalid, or the settings file cannot be written."""

    exit_code = 2
    max_chars = 4 * MAX_MESSAGE_CHARS  # lists all invalid settings


class InvalidFileError(EdgechatError):
    """Raised when a TOML or JSON file cannot be read, decoded or parsed."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location} {reason}")
        self.location = location
        """Path of the file, followed by `:LINE` if the line is known."""
        self.reason = reason


class AgentNotFoundError(EdgechatError):
    """Raised when the program of a coding agent is not installed. Shells use the same exit code."""

    exit_code = 127


class ModelFileError(EdgechatError):
    """Raised when a model file is missing, unreadable, damaged, or of an unsupported kind."""

    exit_code = 3


class ModelCrashError(ModelFileError):
    """Raised when llama.cpp stops its process on a model file; the message names the failed assertion or the signal."""


class TemplateError(EdgechatError):
    """Raised when a chat template fails, exceeds its time or memory limit, or violates the rules of its sandbox."""

    exit_code = 3


class GrammarError(EdgechatError):
    """Raised when a JSON schema or grammar cannot be enforced; the message names the unsupported part."""

    exit_code = 2


class RuntimeLoadError(EdgechatError):
    """Raised when the native bundle is missing or damaged, or none of its backends works on this machine."""


class EngineError(EdgechatError):
    """Raised when the engine rejects a request, or a request fails. The engine process usually keeps running."""

    process_number = 0
    """Number of the engine process of the request, see `EngineProcess.number`; 0 if none had the request."""


class BackendMismatchError(EngineError):
    """Raised when a model needs another backend than the engine process has loaded. A new process can load it."""


class ComputeError(EngineError):
    """Raised when llama.cpp or a device fails during a computation."""


class DrafterError(EngineError):
    """Raised when a model drafter fails. The text is not affected, and the engine can go on without the drafter."""


class RequestCancelledError(EngineError):
    """Raised when a request was cancelled before it had any result."""


class LocalSocketError(EngineError):
    """Raised when two processes cannot connect by a local socket. A client then starts an engine of its own."""


class EngineDiedError(EngineError):
    """Raised when the engine process has ended; the message contains its exit code or signal and its last log lines."""

    max_chars = 4 * MAX_MESSAGE_CHARS

    def __init__(
        self, message: str, code: int | None = None, *, is_gpu_failure: bool = False, died_on_gpu: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        """Exit code, or a negative signal number; None if the process did not start or the code is unknown."""
        self.is_gpu_failure = is_gpu_failure
        """True if the kernels or the driver of the GPU may have caused the end, and nothing else."""
        self.died_on_gpu = died_on_gpu or is_gpu_failure
        """True if the GPU may have caused the end, or something else that the process did at the same time."""


class StoreError(EdgechatError):
    """Raised when conversations cannot be read or written: full disk, locked or read-only database, invalid ID."""


class DamagedDatabaseError(StoreError):
    """Raised when the database is damaged; the message says how to recover its readable part."""


class NotFoundError(StoreError):
    """Raised when a conversation or message does not exist, for example after another process deleted it."""

    exit_code = 2


class AttachmentError(EdgechatError):
    """Raised when a file cannot be attached to a message."""

    exit_code = 2


class AttachmentTooLargeError(AttachmentError):
    """Raised when the attachments of a message are larger than any context."""

    exit_code = 5


class DocumentError(EdgechatError):
    """Raised when a document or a collection of documents cannot be read, or does not exist."""

    exit_code = 2


class UnreadableFileError(DocumentError):
    """Raised when the text of a file cannot be extracted. The message begins with the name of the file."""

    def __init__(self, message: str, reason: str = "", *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.reason = reason or message
        """Sentences that say why, without the name of the file."""
        self.is_temporary = is_temporary
        """True if the same file may be readable later, for example with more free memory."""


class DamagedCollectionError(DocumentError):
    """Raised when the file of a collection is damaged; the message says how to rebuild it from its sources."""

    exit_code = 4

    def __init__(self, message: str, collection: str = "") -> None:
        super().__init__(message)
        self.collection = collection
        """Name of the collection."""


class FullDiskError(DocumentError):
    """Raised when a collection cannot be written because the disk is full."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """First sentence of the message, without the advice; "" if unknown."""


class ImportRefusedError(EdgechatError):
    """Raised when a file has no conversations in a supported format; nothing was imported."""

    exit_code = 2


class CatalogueError(EdgechatError):
    """Raised when a catalogue file or the model registry is invalid, or a model name or alias is unknown or invalid."""

    exit_code = 2


class DownloadError(EdgechatError):
    """Raised when a download fails or is cancelled; received data is saved, and the message says how to resume."""


class HubError(EdgechatError):
    """Raised when the hub or another server refuses a request or cannot be reached."""

    exit_code = 6


class RemoteError(EdgechatError):
    """Raised when a remote cannot be reached, refuses a request, or sends a response that cannot be used."""

    exit_code = 6


class RemoteSetupError(RemoteError):
    """Raised when nothing can be sent to a remote, because the name of a model or the API key is missing."""

    exit_code = 2


class RemoteStatusError(RemoteError):
    """Raised when a remote responds with an HTTP status that reports an error."""

    def __init__(
        self, message: str, status: int = 0, retry_after_s: float | None = None, reason: str = ""
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        """HTTP status; 0 if it is unknown, as in an error that another process reported."""
        self.reason = reason
        """The remote's own text; "" without one."""
        self.retry_after_s = retry_after_s
        """Seconds after which the remote wants the next request; None if it did not say."""


class ContextOverflowError(EdgechatError):
    """Raised when a prompt is longer than the context; the message contains both lengths."""

    exit_code = 5


class PlanError(EdgechatError):
    """Raised when a model does not fit in memory."""

    exit_code = 5


def format_os_error(error: OSError) -> str:
    """Return the path and the reason of an OSError without its number, such as `/a/b: Permission denied`."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, (str, bytes)) else reason


def format_reason(error: BaseException) -> str:
    """Return the reason of any exception in a few words, without an error number and never empty."""
    return format_os_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__


def describe_failure(error: EdgechatError | OSError | UnicodeError | MemoryError) -> tuple[str, int]:
    """Return the message and the exit code for an error that ends the program."""
    if isinstance(error, EdgechatError):
        return str(error), error.exit_code
    if isinstance(error, UnicodeError):
        return _describe_unicode_error(error), UsageError.exit_code
    if isinstance(error, MemoryError):
        return str(error) or "There is not enough memory.", EdgechatError.exit_code
    return format_os_error(error), EdgechatError.exit_code


def _describe_unicode_error(error: UnicodeError) -> str:
    """Return the message for text that cannot be encoded or decoded, with the first byte that is not UTF-8."""
    subject = "An argument, a file name or another text is not valid UTF-8"
    if isinstance(error, UnicodeDecodeError):
        return f"{subject}: its byte {error.start} is 0x{error.object[error.start]:02x}."
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start]
        is_byte = "\udc80" <= character <= "\udcff"  # Python decodes the byte 0xNN of an argument to U+DCNN
        value = f"the byte 0x{ord(character) & 0xFF:02x}" if is_byte else f"U+{ord(character):04X}"
        return f"{subject}: its character {error.start + 1} is {value}."
    return f"{subject}."


def find_error_class(name: str) -> type[EdgechatError]:
    """Return the error class called `name` for an error from another process; EngineError for an unknown name."""
    candidate = globals().get(name)
    if isinstance(candidate, type) and issubclass(candidate, EdgechatError):
        return candidate
    return EngineError
