"""Process that extracts text from files: `edgechat _extract READ_FD WRITE_FD`.

Documents come from anywhere, and the parsers of their formats are large, so that they run in a process with limits of
memory and time. This process uses no network, starts no other process and opens no file for writing.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat import files
from edgechat.documents.extraction import formats
from edgechat.documents.extraction.builder import DocumentBuilder, ExtractionLimits
from edgechat.documents.extraction.protocol import ExtractionReply, ExtractionRequest
from edgechat.documents.text import ExtractedDocument
from edgechat.engine.pipe import make_frame, open_inherited_channel
from edgechat.errors import DocumentError, format_reason
from edgechat.hardware.memory import read_peak_rss_bytes
from edgechat.humanize import shorten

_MAX_REASON_CHARS: Final = 300
_DAMAGED: Final = "it is damaged or incomplete"
# Exceptions that parsers raise for damaged data, and whose messages say more than their type.
_DAMAGE_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError, ValueError)
# Time in addition to the time limit after which the process ends itself, if its parent was killed.
_EXIT_DELAY_S: Final = 10.0
# Audit events that no extraction needs, by the beginning of their names.
_FORBIDDEN_EVENTS: Final = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "shutil.", "ctypes.", "urllib.",
    "ftplib.", "http.", "smtplib.", "webbrowser.",
)  # fmt: skip
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(arguments: list[str]) -> int:
    """Process requests until the parent closes the pipe."""
    channel = open_inherited_channel(arguments)
    sys.addaudithook(forbid_side_effects)
    decoder = msgspec.msgpack.Decoder(ExtractionRequest)
    is_limited = False
    while (body := channel.read()) is not None:
        request = decoder.decode(body)
        if not is_limited:
            limit_memory(request.limits)
            is_limited = True
        faulthandler.dump_traceback_later(request.timeout_s + _EXIT_DELAY_S, exit=True)
        try:
            frame = make_frame(msgspec.msgpack.encode(process_request(request)))
        except MemoryError:
            frame = make_frame(msgspec.msgpack.encode(_make_memory_reply(request.limits)))
        faulthandler.cancel_dump_traceback_later()
        if not channel.write(frame):
            break
    return 0


def forbid_side_effects(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that raises PermissionError for network access, new processes, and changes of files."""
    if event.startswith(_FORBIDDEN_EVENTS):
        raise PermissionError(f"it needs {event}, which is not allowed while a document is read")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITE_FLAGS:
        raise PermissionError("it writes a file, which is not allowed while a document is read")


def limit_memory(limits: ExtractionLimits) -> None:
    """Limit the address space on systems that support it, and disable core dumps."""
    if sys.platform == "win32":
        return
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, limits.memory_bytes)):
        _, hard_limit = resource.getrlimit(kind)
        value = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
        with contextlib.suppress(OSError, ValueError):  # macOS rejects RLIMIT_AS
            resource.setrlimit(kind, (value, value))


def process_request(request: ExtractionRequest) -> ExtractionReply:
    """Extract the text of a file; return it, or the reason why that is not possible."""
    path = Path(os.fsdecode(request.path))
    try:
        document = extract_unchanged(path, request.limits, request.timeout_s)
        return ExtractionReply(document=document, is_last=_uses_much_memory(request.limits))
    except DocumentError as error:
        reason = str(error)
    except MemoryError:
        return _make_memory_reply(request.limits)
    except RecursionError:
        reason = "it is nested too deeply, as a damaged or malicious file is"
    except OSError as error:
        # Parsers of damaged files seek to invalid positions.
        is_invalid = error.errno == errno.EINVAL and error.strerror == os.strerror(errno.EINVAL)
        reason = _DAMAGED if is_invalid else error.strerror or format_reason(error)
    except Exception as error:  # noqa: BLE001  (a damaged file can raise any exception in the parsers)
        details = " ".join(shorten(format_reason(error), _MAX_REASON_CHARS).split())
        reason = f"{_DAMAGED} ({details})" if isinstance(error, _DAMAGE_ERRORS) else _DAMAGED
    reason = reason.encode("utf-8", "replace").decode()
    return ExtractionReply(error=reason[:1].lower() + reason[1:] if reason[:2] in {"It", "Th", "No"} else reason)


def extract_unchanged(path: Path, limits: ExtractionLimits, timeout_s: float) -> ExtractedDocument:
    """Return the text of a file. If the file changes meanwhile, read it once more.

    Raises DocumentError if it changes again, and the exceptions of `formats.extract`.
    """
    for _ in range(2):
        builder = DocumentBuilder(limits, timeout_s)
        with files.open_regular(path) as file:
            before = os.fstat(file.fileno())
            try:
                formats.extract(file, path.name, builder)
                error = None
            except (OSError, MemoryError):
                raise
            except Exception as failure:  # noqa: BLE001  (raised again below, unless the file has changed)
                error = failure
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            if error is not None:
                raise error
            return builder.build()
    raise DocumentError("it changed while it was read. Try again when it is complete.")


def _make_memory_reply(limits: ExtractionLimits) -> ExtractionReply:
    return ExtractionReply(error=limits.describe_memory(), is_last=True)


def _uses_much_memory(limits: ExtractionLimits) -> bool:
    """Return whether the process has used most of its memory, so that fragments of it may be lost for other files."""
    return read_peak_rss_bytes() > limits.memory_bytes // 2
