"""Import of a file in a child process with limits, because even a small file can take a lot of memory and time.

`edgechat _import PATH` writes an `ImportReply` to standard output.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import files, process
from edgechat.errors import ImportRefusedError
from edgechat.hardware.memory import read_rss_bytes
from edgechat.humanize import format_duration, format_size
from edgechat.store.formats import chatgpt
from edgechat.store.formats.edgechat_json import ImportedData

# Memory limit for the decoded file and the conversations. Real exports need up to six times their size.
_MIN_MEMORY_BYTES: Final = 512 << 20
_MEMORY_PER_FILE_BYTE: Final = 10
# Time limit. Real exports take 0.03 s per megabyte on a PC, and 1 s per megabyte on a small board.
_MIN_TIMEOUT_S: Final = 30.0
_TIMEOUT_S_PER_BYTE: Final = 1e-6
# Assumed size of a file that reports a size of 0, as the files in /proc do.
_UNKNOWN_SIZE_BYTES: Final = 64 << 20
_POLL_INTERVAL_S: Final = 0.1

OnWait = Callable[[float], None]
"""Callback during an import; the argument is the elapsed time in seconds."""


class ImportReply(msgspec.Struct):
    """Result of the child process."""

    data: ImportedData | None = None
    error: str = ""


class _ProcessLimits(msgspec.Struct, frozen=True):
    """Limits of the child process: bytes of the file that it may read, memory, and time."""

    file_bytes: int
    memory_bytes: int
    timeout_s: float


def read_file(path: Path, on_wait: OnWait = lambda seconds: None) -> ImportedData:
    """Read the conversations of a file in a child process, whose limits depend on the size of the file.

    `importing.read_file` describes the formats. Raises ImportRefusedError.
    """
    limits = _compute_limits(path)
    child = subprocess.Popen(
        process.make_command_line("_import", os.fspath(path.absolute())), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    output: list[bytes] = []
    reader = threading.Thread(target=lambda: output.append(_read_all(child, limits.memory_bytes)), daemon=True)
    reader.start()
    started_at = time.monotonic()
    problem = ""
    try:
        while reader.is_alive() and not problem:
            reader.join(_POLL_INTERVAL_S)
            elapsed_s = time.monotonic() - started_at
            on_wait(elapsed_s)
            if elapsed_s > limits.timeout_s:
                problem = f"reading it took more than {format_duration(limits.timeout_s)}"
            elif read_rss_bytes(child.pid) > limits.memory_bytes:  # for systems that do not limit the address space
                problem = _describe_memory(limits)
    finally:
        if reader.is_alive():
            child.kill()
        reader.join()
        if child.stdout is not None:
            child.stdout.close()  # a child that is still writing gets a broken pipe, and ends
        exit_code = child.wait()
    if exit_code == process.EXIT_VERSION_CHANGED:
        raise ImportRefusedError(process.UPGRADED_MESSAGE)
    try:
        reply = msgspec.msgpack.decode(output[0], type=ImportReply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        reply = ImportReply(error=f"Cannot import {path}: {problem or f'the reader failed with code {exit_code}'}.")
    if problem or reply.data is None:
        raise ImportRefusedError(reply.error or f"Cannot import {path}: {problem}.")
    return reply.data


def _read_all(child: subprocess.Popen[bytes], max_bytes: int) -> bytes:
    with contextlib.suppress(OSError, ValueError, MemoryError):  # ValueError: the main thread closed the pipe
        return child.stdout.read(max_bytes) if child.stdout is not None else b""
    return b""


def _compute_limits(path: Path) -> _ProcessLimits:
    try:
        with files.open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size or _UNKNOWN_SIZE_BYTES
            is_zip_file = file.read(2) == b"PK"
    except OSError:
        file_bytes, is_zip_file = _UNKNOWN_SIZE_BYTES, False  # the child process reports the error
    file_bytes = min(file_bytes, chatgpt.MAX_BYTES)
    size_bytes = chatgpt.max_unpacked_bytes(file_bytes) if is_zip_file else file_bytes
    return _ProcessLimits(
        file_bytes,
        _MIN_MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * size_bytes,
        _MIN_TIMEOUT_S + _TIMEOUT_S_PER_BYTE * size_bytes,
    )


def _describe_memory(limits: _ProcessLimits) -> str:
    return f"reading it needs more than {format_size(limits.memory_bytes)} of memory"


def main(arguments: list[str]) -> int:
    """Read the file `arguments[0]`, and write an `ImportReply` to standard output."""
    from edgechat.store import importing

    gc.disable()  # halves the time of large imports; the process ends soon
    path = Path(arguments[0])
    limits = _compute_limits(path)
    _limit_process(limits)
    try:
        reply = ImportReply(data=importing.read_file(path, limits.file_bytes))
        encoded_reply = msgspec.msgpack.encode(reply)
    except ImportRefusedError as error:
        encoded_reply = msgspec.msgpack.encode(ImportReply(error=str(error)))
    except MemoryError:
        error_text = f"Cannot import {path}: {_describe_memory(limits)}."
        encoded_reply = msgspec.msgpack.encode(ImportReply(error=error_text))
    except Exception:  # noqa: BLE001  (a damaged file can raise any exception in the parsers)
        error_text = f"Cannot import {path}: the file is damaged or has an unknown layout."
        encoded_reply = msgspec.msgpack.encode(ImportReply(error=error_text.encode("utf-8", "replace").decode()))
    sys.stdout.buffer.write(encoded_reply)
    sys.stdout.buffer.flush()
    return 0


def _limit_process(limits: _ProcessLimits) -> None:
    """Limit memory and processor time of this process on systems that support it, and disable core dumps."""
    if sys.platform == "win32":
        return
    import resource

    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, int(limits.timeout_s) + 1),  # ends this process even if its parent was killed
    ):
        _, hard_limit = resource.getrlimit(kind)
        soft_limit = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
        with contextlib.suppress(OSError, ValueError):  # macOS rejects RLIMIT_AS
            resource.setrlimit(kind, (soft_limit, hard_limit))
