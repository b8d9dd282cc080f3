"""Attachments of messages: loads text files, and inserts their contents into the prompt."""

from __future__ import annotations

import codecs
import errno
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgechat import files, humanize
from edgechat.chat.messages import Attachment
from edgechat.chat.text_files import NotTextError, decode_text
from edgechat.errors import AttachmentError, AttachmentTooLargeError, DocumentError, StoreError
from edgechat.file_formats import find_format

# Maximum total size of the attachments of a message. No larger text fits into a context of 256k tokens, because the
# longest tokens have 128 bytes.
MAX_BYTES: Final = 32 << 20


# Suffixes of the documents whose text is extracted in a child process.
_DOCUMENT_SUFFIXES: Final = frozenset((".pdf", ".docx", ".docm", ".pptx", ".pptm", ".xlsx", ".xlsm", ".epub"))
# Number of documents whose extracted text is kept, because a message counts the tokens of its files before it is sent.
_MAX_EXTRACTED: Final = 4


def is_document(path: Path) -> bool:
    """Return whether a file is a PDF, Office or EPUB document by its name, whose text is extracted."""
    return path.suffix.lower() in _DOCUMENT_SUFFIXES


def load_attachments(paths: Sequence[Path]) -> tuple[tuple[Attachment, ...], dict[str, bytes]]:
    """Read files to attach to a message; return the attachments, and their bytes by SHA-256 hash.

    Raises AttachmentError if a file cannot be read or is an image.
    """
    attachments: list[Attachment] = []
    contents: dict[str, bytes] = {}
    n_bytes = 0
    for path in paths:
        data, media_type = read_file(path, MAX_BYTES - n_bytes)
        n_bytes += len(data)
        sha256 = hashlib.sha256(data).hexdigest()
        contents[sha256] = data
        attachments.append(Attachment(sha256=sha256, name=path.name, media_type=media_type, size_bytes=len(data)))
    _reject_images(attachments)
    return tuple(attachments), contents


def read_file(path: Path, max_bytes: int) -> tuple[bytes, str]:
    """Return the content and the media type of a text or image file. Text is converted to UTF-8.

    The content of a document is its extracted text. Raises AttachmentError for other kinds of files, and if the file or
    its content is larger than `max_bytes`.
    """
    try:
        if is_document(path):
            status = path.stat()
            return _check_size(path, _extract_text(path, status.st_mtime_ns, status.st_size), max_bytes), "text/plain"
        data = files.read_bytes(path, max_bytes)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _create_too_large_error(path, "the file", max_bytes) from error
        raise AttachmentError(f"Cannot read {path}: {error.strerror or error}") from error
    content, media_type = convert_file(data, path.name)
    return _check_size(path, content, max_bytes), media_type


def _check_size(path: Path, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:  # text can be longer in UTF-8 than in UTF-16 or in a compressed file
        raise _create_too_large_error(path, "its text in UTF-8", max_bytes)
    return content


@functools.lru_cache(maxsize=_MAX_EXTRACTED)
def _extract_text(path: Path, mtime_ns: int, size_bytes: int) -> bytes:  # noqa: ARG001  (keys of the cache)
    """Return the text of a document. Raises AttachmentError."""
    from edgechat.documents import prompt_text
    from edgechat.documents.extraction.process import extract_file

    try:
        document = extract_file(path)
    except DocumentError as error:
        raise AttachmentError(str(error)) from error  # begins with the name of the file
    return prompt_text.format_document(document).encode("utf-8", "replace")


def _create_too_large_error(path: Path, subject: str, max_bytes: int) -> AttachmentTooLargeError:
    limit = humanize.format_size(MAX_BYTES)
    reason = f"{subject} is larger than {limit}"
    if max_bytes < MAX_BYTES:
        reason = f"the attachments of a message can have at most {limit} together"
    return AttachmentTooLargeError(f"Cannot attach {path}: {reason}.")


def convert_file(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the content and the media type of a text or image file whose bytes are `data`. Converts text to UTF-8.

    `name` is the file name for the error message. Raises AttachmentError for other kinds of files.
    """
    try:
        text = decode_text(data)
    except NotTextError as error:
        file_format = find_format(data)
        if file_format is None or not file_format.media_type:
            raise AttachmentError(f"{name} {error}") from error
        return data, file_format.media_type
    return (data if data.startswith(codecs.BOM_UTF8) else text.encode()), "text/plain"


def _reject_images(attachments: Sequence[Attachment]) -> None:
    """Raise AttachmentError if an attachment is an image, which edgechat sends to no model, local or remote."""
    images = [a.name for a in attachments if a.is_image]
    if images:
        raise AttachmentError(f"{images[0]} is an image. edgechat does not read images. Remove the attachment.")


def prepend_attachments(text: str, attachments: Sequence[Attachment], read_attachment: Callable[[str], bytes]) -> str:
    """Return the content of a message for the prompt: the attached text files in code fences, then the message text.

    `read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError. Images and passages of
    documents are left out.
    """
    parts = [_format_for_prompt(a, read_attachment) for a in attachments if _is_text_file(a)]
    return "\n\n".join([*parts, text] if text else parts)


def attached_texts(attachments: Sequence[Attachment], read_attachment: Callable[[str], bytes]) -> list[str]:
    """Return the contents of the attached text files; attachments missing from the store are skipped."""
    texts = (_read_text(a, read_attachment) for a in attachments if _is_text_file(a))
    return [text for text in texts if text is not None]


def _is_text_file(attachment: Attachment) -> bool:
    return not attachment.is_image and not attachment.is_passages


def _format_for_prompt(attachment: Attachment, read_attachment: Callable[[str], bytes]) -> str:
    text = _read_text(attachment, read_attachment)
    # A missing attachment becomes a note in the prompt, so that the conversation can still be continued.
    return f"({attachment.name} is missing)" if text is None else _wrap_in_code_fence(attachment.name, text)


def _read_text(attachment: Attachment, read_attachment: Callable[[str], bytes]) -> str | None:
    try:
        return read_attachment(attachment.sha256).decode("utf-8-sig", "replace")
    except StoreError:
        return None


def _wrap_in_code_fence(name: str, text: str) -> str:
    from edgechat.documents.prompt_text import make_fence

    fence = make_fence([text])
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"
