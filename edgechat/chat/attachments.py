"""Files that come with a message: what can be taken along, and how a model is shown it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat.chat.messages import Attachment
from edgechat.errors import AttachmentError, StoreError

MAX_BYTES: Final = 32 << 20

# First bytes of the pictures that models for pictures read.
_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


def load_attachments(files: Sequence[Path], model: str) -> tuple[tuple[Attachment, ...], dict[str, bytes]]:
    """What goes with a message to `model`, and its bytes by hash. Raises AttachmentError."""
    attached: list[Attachment] = []
    contents: dict[str, bytes] = {}
    for path in files:
        data, kind = read_file(path)
        sha256 = hashlib.sha256(data).hexdigest()
        contents[sha256] = data
        attached.append(Attachment(sha256=sha256, name=path.name, media_type=kind, size_bytes=len(data)))
    reject_images(attached, model)
    return tuple(attached), contents


def read_file(path: Path) -> tuple[bytes, str]:
    """The bytes of a file and their media type. Raises AttachmentError if it is neither text nor a picture."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AttachmentError(f"{path} has {size} bytes; at most {MAX_BYTES} can go with a message")
        if not path.is_file():  # a pipe would wait, a device would never end
            raise AttachmentError(f"{path} is not a file")
        data = path.read_bytes()
    except OSError as error:
        raise AttachmentError(f"{path} cannot be read: {error.strerror or error}") from error
    return data, detect_media_type(data, path.name)


def detect_media_type(data: bytes, name: str) -> str:
    """What the bytes are, whatever their name says. Raises AttachmentError if that is of no use in a chat."""
    found = next((kind for start, kind in _IMAGES if data.startswith(start)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "image/webp"
    if found:
        return found
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AttachmentError(
            f"{name} is neither UTF-8 text nor a picture (byte {error.start} is 0x{data[error.start]:02x}): "
            "convert it to text first"
        ) from error
    if "\0" in text:
        raise AttachmentError(f"{name} is not a text: it holds zero bytes (at byte {data.index(0)})")
    return "text/plain"


def reject_images(attachments: Sequence[Attachment], model: str) -> None:
    """Raises AttachmentError if there is a picture: no model is shown pictures yet."""
    images = [a.name for a in attachments if a.is_image]
    if images:
        raise AttachmentError(f"{images[0]} is a picture, and {model} cannot see pictures: leave it out")


def with_attachments(text: str, attachments: Sequence[Attachment], read: Callable[[str], bytes]) -> str:
    """What the model is shown of a message: each file under its name, then the words. `read` takes a hash."""
    parts = [_shown(a, read) for a in attachments if not a.is_image]
    return "\n\n".join([*parts, text] if text else parts)


def attached_texts(attachments: Sequence[Attachment], read: Callable[[str], bytes]) -> list[str]:
    """What stands in those that are texts and not lost."""
    found = (_text(a, read) for a in attachments if not a.is_image)
    return [text for text in found if text is not None]


def _shown(attachment: Attachment, read: Callable[[str], bytes]) -> str:
    text = _text(attachment, read)
    # One file that is lost must not end the conversation.
    return f"({attachment.name} is lost)" if text is None else _fenced(attachment.name, text)


def _text(attachment: Attachment, read: Callable[[str], bytes]) -> str | None:
    try:
        return read(attachment.sha256).decode("utf-8-sig", "replace")
    except StoreError:
        return None


def _fenced(name: str, text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"
