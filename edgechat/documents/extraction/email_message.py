"""Text of e-mail messages (EML): sender, recipients, date, subject, body, and the names of attachments."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from io import BufferedReader
from typing import Final

from edgechat.documents.extraction.blocks import LINE, BlockWriter
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.html_document import convert_html, decode_html
from edgechat.documents.extraction.plain_text import normalize_newlines
from edgechat.errors import DocumentError
from edgechat.humanize import format_size

_HEADERS: Final = ("From", "To", "Cc", "Date")
# Headers of which every message has at least one.
_MESSAGE_HEADERS: Final = ("From", "Subject", "Date", "Received", "Message-ID", "To")
_MAX_BYTES: Final = 128 << 20
_MAX_PARTS: Final = 10_000
_MAX_HEADER_CHARS: Final = 2000


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the message as one section. Raises DocumentError for data that are not a message."""
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DocumentError(f"it is larger than {format_size(_MAX_BYTES)}.")
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, EmailMessage) or not _has_headers(message):
        raise DocumentError(f"it has none of the headers of an e-mail message: {', '.join(_MESSAGE_HEADERS)}.")
    writer = BlockWriter(builder.limits.max_text_bytes)
    builder.title = _get_header(message, "Subject")
    writer.add(f"# {builder.title}" if builder.title else "")
    _write_headers(message, writer)
    bodies, attachments = _list_parts(message)
    for body in bodies:
        if attached := _find_attached_message(body):
            writer.add(f"## Attached message: {_get_header(attached, 'Subject') or 'without a subject'}")
            _write_headers(attached, writer)
        else:
            writer.add(_read_body(body, builder))
    if attachments:
        names = (_describe_attachment(part) for part in attachments)
        writer.add(f"Attachments (not read): {', '.join(names)}")
        builder.add_notice(f"Its attachments ({len(attachments)}) were not read.")
    builder.add(writer.text)


def _has_headers(message: EmailMessage) -> bool:
    return any(name in message for name in _MESSAGE_HEADERS)


def _find_attached_message(part: EmailMessage) -> EmailMessage | None:
    """Return the message that a part of the type message/rfc822 consists of; None for other parts."""
    if part.get_content_type() != "message/rfc822" or not part.is_multipart():
        return None
    attached = part.get_payload(0)
    return attached if isinstance(attached, EmailMessage) and _has_headers(attached) else None


def _write_headers(message: EmailMessage, writer: BlockWriter) -> None:
    for name in _HEADERS:
        if value := _get_header(message, name):
            writer.add(f"{name}: {value}", LINE)
    writer.end_paragraph()


def _get_header(message: EmailMessage, name: str) -> str:
    """Return a header in one line; "" if it is missing or cannot be parsed."""
    try:
        return " ".join(str(message.get(name, "")).split())[:_MAX_HEADER_CHARS]
    except Exception:  # noqa: BLE001  (the parser of headers raises IndexError, AttributeError and others)
        return ""


def _list_parts(message: EmailMessage) -> tuple[list[EmailMessage], list[EmailMessage]]:
    """Return the parts with the text of the message, and the attachments. Of alternatives, plain text is preferred.

    Attached messages are followed by the parts with their text.
    """
    bodies: list[EmailMessage] = []
    attachments: list[EmailMessage] = []
    pending = [message]
    n_parts = 0
    while pending:
        part = pending.pop()
        n_parts += 1
        if n_parts > _MAX_PARTS:
            raise DocumentError(f"it has more than {_MAX_PARTS} parts, as a malicious message does.")
        kind = part.get_content_type()
        if kind == "multipart/alternative":
            pending.extend(_choose_alternative(part))
        elif attached := _find_attached_message(part):
            bodies.append(part)
            pending.append(attached)
        elif part.is_multipart() and kind != "message/rfc822":
            pending.extend(reversed([p for p in part.get_payload() if isinstance(p, EmailMessage)]))
        elif kind in {"text/plain", "text/html"} and part.get_content_disposition() != "attachment":
            bodies.append(part)
        else:
            attachments.append(part)
    return bodies, attachments


def _choose_alternative(part: EmailMessage) -> list[EmailMessage]:
    alternatives = [p for p in part.get_payload() if isinstance(p, EmailMessage)]
    plain = [p for p in alternatives if p.get_content_type() == "text/plain" and len(p.get_payload()) > 1]
    return (plain or alternatives[-1:])[:1]


def _read_body(part: EmailMessage, builder: DocumentBuilder) -> str:
    """Return the text of a part, decoded with the encoding that it declares or that its bytes have."""
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    try:
        text = normalize_newlines(data.decode(part.get_content_charset() or "utf-8"))
    except (LookupError, UnicodeError):
        try:
            text = decode_html(data, builder)
        except DocumentError as error:
            builder.add_notice(f"One of its texts was not read. {error}")
            return ""
    if part.get_content_type() == "text/html":
        return convert_html(text, builder).text
    return text.strip()


def _describe_attachment(part: EmailMessage) -> str:
    name = " ".join((part.get_filename() or "without a name").split())
    return f"{name} ({part.get_content_type()})"
