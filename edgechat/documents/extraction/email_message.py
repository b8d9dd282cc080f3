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
_MAX_BYTES: Final = 128 << 20
_MAX_PARTS: Final = 10_000
_MAX_HEADER_CHARS: Final = 2000


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the message as one section. Raises DocumentError for data that are not a message."""
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DocumentError(f"it is larger than {format_size(_MAX_BYTES)}.")
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, EmailMessage) or not (message.keys() and (message["From"] or message["Subject"])):
        raise DocumentError("it has neither a sender nor a subject, so that it is not an e-mail message.")
    writer = BlockWriter(builder.limits.max_text_bytes)
    builder.title = _get_header(message, "Subject")
    writer.add(f"# {builder.title}" if builder.title else "")
    for name in _HEADERS:
        if value := _get_header(message, name):
            writer.add(f"{name}: {value}", LINE)
    writer.end_paragraph()
    bodies, attachments = _list_parts(message)
    for body in bodies:
        writer.add(_read_body(body, builder))
    if attachments:
        names = (_describe_attachment(part) for part in attachments)
        writer.add(f"Attachments (not read): {', '.join(names)}")
        builder.add_notice(f"Its attachments ({len(attachments)}) were not read.")
    builder.add(writer.text)


def _get_header(message: EmailMessage, name: str) -> str:
    """Return a header in one line; "" if it is missing or cannot be parsed."""
    try:
        return " ".join(str(message.get(name, "")).split())[:_MAX_HEADER_CHARS]
    except Exception:  # noqa: BLE001  (the parser of headers raises IndexError, AttributeError and others)
        return ""


def _list_parts(message: EmailMessage) -> tuple[list[EmailMessage], list[EmailMessage]]:
    """Return the parts with the text of the message, and the attachments. Of alternatives, plain text is preferred."""
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
        text = decode_html(data, builder)
    if part.get_content_type() == "text/html":
        return convert_html(text, builder.limits.max_text_bytes)[0]
    return text.strip()


def _describe_attachment(part: EmailMessage) -> str:
    name = " ".join((part.get_filename() or "without a name").split())
    return f"{name} ({part.get_content_type()})"
