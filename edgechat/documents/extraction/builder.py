"""Collects the text of a document within the limits of the extraction."""

from __future__ import annotations

import re
import time
from typing import Final

import msgspec

from edgechat.documents.text import ExtractedDocument, Section
from edgechat.humanize import format_size

# Bytes that a section takes in a message besides its text.
_SECTION_BYTES: Final = 64
# Share of the time limit after which an extraction that can stop between pages does so.
_STOP_SHARE: Final = 0.7
_MAX_TITLE_CHARS: Final = 500
_LONE_SURROGATES: Final = re.compile("[\ud800-\udfff]")

SPLIT_ADVICE: Final = "Split it into smaller files, or save its text as a text file."
"""Next step for a file that exceeds a limit."""


class ExtractionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the extraction of one file."""

    memory_bytes: int = 1 << 30
    """Address space of the process, or its resident memory where the system does not limit the address space."""
    timeout_s: float = 60.0
    timeout_s_per_byte: float = 3e-6
    """Time in addition to `timeout_s`, per byte of the file."""
    max_timeout_s: float = 600.0
    max_text_bytes: int = 60 << 20
    """Size of the text in UTF-8. A frame of `engine.pipe` has at most 64 MiB."""
    max_unpacked_bytes: int = 1 << 30
    """Bytes that are read from the files in an archive, such as a Word document."""
    max_pages: int = 20_000

    def compute_timeout_s(self, size_bytes: int) -> float:
        """Return the time limit in seconds for a file of `size_bytes`."""
        return min(self.timeout_s + self.timeout_s_per_byte * size_bytes, self.max_timeout_s)

    def describe_memory(self) -> str:
        """Return the text that says why a file is not read: its extraction needs more than `memory_bytes`."""
        return f"reading it needs more than {format_size(self.memory_bytes)} of memory. {SPLIT_ADVICE}"


class DocumentBuilder:
    """Sections of a document that is being extracted. Text beyond the limit is cut off, and the notice says so."""

    def __init__(self, limits: ExtractionLimits, timeout_s: float) -> None:
        self.limits = limits
        self.title = ""
        self._sections: list[Section] = []
        self._notices: list[str] = []
        self._n_bytes = 0
        self._is_full = False
        self._stop_at = time.monotonic() + timeout_s * _STOP_SHARE

    @property
    def is_full(self) -> bool:
        """True if the limit of the text is reached, so that the extraction should stop."""
        return self._is_full

    @property
    def is_late(self) -> bool:
        """True if most of the time limit has passed, so that an extraction that can stop in between should do so."""
        return time.monotonic() > self._stop_at

    @property
    def has_text(self) -> bool:
        """True if a section has any text."""
        return bool(self._sections)

    def add(self, text: str, *, page: int | None = None, heading: str = "", first_line: int | None = None) -> None:
        """Append a section, unless its text is empty. Replaces characters that are not valid Unicode."""
        if self._is_full or not text or text.isspace():
            return
        text = _replace_invalid(text)
        data = text.encode()
        n_left = self.limits.max_text_bytes - self._n_bytes - _SECTION_BYTES - len(heading) * 4
        if len(data) > n_left:
            self.cut_off()
            text = data[: max(n_left, 0)].decode(errors="ignore")
            if not text.strip():
                return
        self._n_bytes += len(data) + _SECTION_BYTES + len(heading) * 4
        self._sections.append(Section(text=text, page=page, heading=_replace_invalid(heading), first_line=first_line))

    def cut_off(self) -> None:
        """Say that the document has more text than the limit, and accept no more text."""
        if not self._is_full:
            self._is_full = True
            self.add_notice(f"Only the first {format_size(self.limits.max_text_bytes)} of the text were read.")

    def add_notice(self, sentence: str) -> None:
        """Append a sentence about parts that could not be read, once."""
        if sentence not in self._notices:
            self._notices.append(sentence)

    def build(self) -> ExtractedDocument:
        """Return the document."""
        if not self._sections and not self._notices:
            self.add_notice("The file has no text.")
        title = " ".join(_replace_invalid(self.title)[:_MAX_TITLE_CHARS].split())
        return ExtractedDocument(sections=tuple(self._sections), title=title, notice=" ".join(self._notices))


def _replace_invalid(text: str) -> str:
    """Return text without null characters, and with a replacement character for what is not valid Unicode."""
    text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:  # faster than a search for surrogates in all text
        return _LONE_SURROGATES.sub("\ufffd", text)
    return text
