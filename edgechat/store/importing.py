"""Import of conversation files (`edgechat history import`): detects the format and decodes the conversations."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat import files
from edgechat.chat.text_files import NotTextError, decode_text
from edgechat.decode_errors import describe_syntax_error, is_lone_surrogate
from edgechat.errors import ImportRefusedError
from edgechat.humanize import format_size
from edgechat.store.formats import chatgpt, edgechat_json, llm_logs, markdown
from edgechat.store.formats.edgechat_json import ImportedData

# Maximum file size. An import holds several copies of the file in memory.
MAX_BYTES: Final = chatgpt.MAX_BYTES
_JSON_STARTS: Final = (b"{", b"[")
# Number of bytes at the start of a file in which JSON must begin; only blank lines may precede it.
_SAMPLE_BYTES: Final = 1024


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> ImportedData:
    """Read the conversations of an edgechat export (JSON, Markdown), a ChatGPT export (JSON, ZIP), or an llm database.

    Raises ImportRefusedError if the file has another format, is damaged, or has more than `max_bytes`.
    """
    try:
        data = files.read_bytes(path, max_bytes)
    except OSError as error:
        if path.is_dir():
            raise ImportRefusedError(f"Cannot import {path}: it is a folder. Import the files in it.") from error
        if error.errno == errno.EFBIG:
            reason = f"it is larger than {format_size(max_bytes)}."
            if max_bytes != MAX_BYTES:
                reason = (
                    f"it grew to more than {format_size(max_bytes)} during the import. Try again when it is complete."
                )
            raise ImportRefusedError(f"Cannot import {path}: {reason}") from error
        raise ImportRefusedError(f"Cannot read {path}: {error.strerror or error}.") from error
    if data.startswith(b"SQLite format 3\0"):
        return llm_logs.read_database(path)
    try:
        return _parse(chatgpt.unzip_conversations(data) if data.startswith(b"PK") else data)
    except ImportRefusedError as error:
        raise ImportRefusedError(f"Cannot import {path}: {error}") from error


def _parse(data: bytes) -> ImportedData:
    if not data.strip():
        raise ImportRefusedError("the file is empty.")
    try:
        if not _starts_json(data):
            data = decode_text(data).encode()  # PowerShell saves output in UTF-16
    except NotTextError as error:
        raise ImportRefusedError(f"the file {error}") from error
    if _starts_json(data):
        data, value = _decode_json(data)
        if isinstance(value, list):
            return chatgpt.parse(value)
        if "mapping" in value:  # a single conversation of a ChatGPT export
            return chatgpt.parse([value])
        return edgechat_json.decode(data)
    text = data.decode()
    if text.lstrip()[:20].lower().startswith(("<!doctype html", "<html")):
        raise ImportRefusedError("HTML pages cannot be imported. Export the conversation as JSON or Markdown.")
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        msgspec.json.decode(data)
        raise ImportRefusedError("the file is JSON, but contains no conversations.")
    record, problems = markdown.parse(text)
    return edgechat_json.sanitize([record], {}, problems)


def _starts_json(data: bytes) -> bool:
    return data[:_SAMPLE_BYTES].lstrip(b" \t\r\n")[:1] in _JSON_STARTS


def _decode_json(data: bytes) -> tuple[bytes, Any]:
    """Return valid JSON bytes and their decoded value, with "?" for lone surrogates, which some programs write."""
    try:
        try:
            return data, msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            if not is_lone_surrogate(error, data):
                raise
        data = json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace")
        return data, msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: from json
        position = data.find(b"\0")
        if position >= 0:
            raise ImportRefusedError(
                f"the file is damaged: from byte {position} of {len(data)} on it contains zeros instead of text, as "
                "after a system crash."
            ) from error
        reason = describe_syntax_error(error, data)
        if isinstance(error, json.JSONDecodeError):
            reason = f"at character {error.pos}: {error.msg}"
        raise ImportRefusedError(f"the file is not valid JSON: {reason}.") from error
