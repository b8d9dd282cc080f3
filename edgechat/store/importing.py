"""What kind of file it is that somebody wants to import, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.errors import ImportRefusedError
from edgechat.store.formats import chatgpt, edgechat_json, llm_logs, markdown
from edgechat.store.formats.edgechat_json import ImportedData

# The whole file is held in memory, some times over.
MAX_BYTES: Final = chatgpt.MAX_BYTES


def read_file(path: Path) -> ImportedData:
    """Conversations of a file: our JSON or Markdown, a ChatGPT export (JSON or ZIP), or a database of llm.

    Raises ImportRefusedError if it is none of these, damaged, or too large.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ImportRefusedError(f"{path} is not a file")
        if size > MAX_BYTES:
            raise ImportRefusedError(f"{path} has {size} bytes; at most {MAX_BYTES} can be imported")
        data = path.read_bytes()
    except OSError as error:
        raise ImportRefusedError(f"{path} cannot be read: {error.strerror or error}") from error
    if data.startswith(b"SQLite format 3\0"):
        return llm_logs.read_database(path)
    try:
        return _text(chatgpt.unzip_conversations(data) if data.startswith(b"PK") else data)
    except ImportRefusedError as error:
        raise ImportRefusedError(f"{path}: {error}") from error


def _text(data: bytes) -> ImportedData:
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[:1] in (b"{", b"["):
        data, value = _decoded(data)
        if isinstance(value, list):
            return chatgpt.parse(value)
        if "mapping" in value:  # one conversation by itself
            return chatgpt.parse([value])
        return edgechat_json.decode(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ImportRefusedError(f"this is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x})") from error
    if text.lstrip()[:20].lower().startswith(("<!doctype html", "<html")):
        raise ImportRefusedError("an HTML page is only for reading: export the conversation as JSON or Markdown")
    record, problems = markdown.parse(text)
    return edgechat_json.sanitize([record], {}, problems)


def _decoded(data: bytes) -> tuple[bytes, Any]:
    """Sound JSON, and its value. Some programs write half a character of two; it becomes a question mark."""
    try:
        try:
            return data, msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            if "surrogate" not in str(error):
                raise
        data = json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace")
        return data, msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImportRefusedError(f"this is not sound JSON: {error}") from error
