"""Messages between the process that reads documents (module `worker`) and its parent (module `process`)."""

from __future__ import annotations

import msgspec

from edgechat.documents.extraction.builder import ExtractionLimits
from edgechat.documents.text import ExtractedDocument


class ExtractionRequest(msgspec.Struct, frozen=True):
    """Request for the text of one file."""

    path: bytes
    """Absolute path in the encoding of the file system."""
    limits: ExtractionLimits
    timeout_s: float


class ExtractionReply(msgspec.Struct, frozen=True):
    """Text of a file, or the reason why it cannot be read."""

    document: ExtractedDocument | None = None
    error: str = ""
    """Sentences that continue "NAME cannot be read: "."""
    is_last: bool = False
    """True if the process has used so much memory that it ends after this reply."""
    is_temporary: bool = False
    """True if the same file may be readable later."""
