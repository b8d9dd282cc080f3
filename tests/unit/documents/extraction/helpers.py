"""Extraction from bytes, for tests of the formats."""

from __future__ import annotations

import io

import pytest

from edgechat.documents.extraction import formats
from edgechat.documents.extraction.builder import DocumentBuilder, ExtractionLimits
from edgechat.documents.text import ExtractedDocument
from edgechat.errors import DocumentError


def extract(data: bytes, name: str, limits: ExtractionLimits | None = None) -> ExtractedDocument:
    builder = DocumentBuilder(limits or ExtractionLimits(), timeout_s=1000)
    formats.extract(io.BufferedReader(io.BytesIO(data)), name, builder)
    return builder.build()


def extract_text(data: bytes, name: str) -> str:
    document = extract(data, name)
    return "\n".join(section.text for section in document.sections)


def fail(data: bytes, name: str) -> str:
    with pytest.raises(DocumentError) as caught:
        extract(data, name)
    return str(caught.value)
