"""Formats of documents: which one a file has, by its first bytes and its name, and the extraction of its text."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from io import BufferedReader
from typing import Final

from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.errors import DocumentError
from edgechat.file_formats import FileFormat, find_byte_order_mark, find_format, find_unmarked_utf16

HEAD_BYTES: Final = 1 << 14
"""Number of bytes at the start of a file that `extract` examines."""
_SUPPORTED: Final = "edgechat reads text, HTML, PDF, DOCX, PPTX, XLSX, EPUB and EML files."
# Format of the files with an extension. The first bytes decide for PDF files and ZIP archives.
_KINDS: Final = {
    "htm": "html", "html": "html", "xhtml": "html", "eml": "email", "pdf": "pdf", "docx": "zip", "docm": "zip",
    "pptx": "zip", "pptm": "zip", "xlsx": "zip", "xlsm": "zip", "epub": "zip",
}  # fmt: skip
DOCUMENT_EXTENSIONS: Final = frozenset((
    *_KINDS,
    "adoc", "bat", "bib", "c", "cc", "cfg", "clj", "cmake", "conf", "cpp", "cs", "css", "csv", "cxx", "dart", "diff",
    "dockerfile", "el", "erl", "ex", "f90", "go", "gradle", "graphql", "groovy", "h", "hpp", "hs", "hxx", "ini", "java",
    "jl", "js", "json", "jsonl", "jsx", "kt", "less", "lisp", "log", "lua", "m", "markdown", "md", "mdx", "mjs", "ml",
    "mm", "nim", "nix", "org", "patch", "php", "pl", "pm", "proto", "ps1", "py", "pyi", "r", "rb", "rs", "rst", "scala",
    "scss", "sh", "sol", "sql", "swift", "tcl", "tex", "tf", "toml", "ts", "tsv", "tsx", "txt", "vim", "vue", "xml",
    "yaml", "yml", "zig",
))  # fmt: skip
"""Lower-case extensions of files that are text or have a supported format, so that a walk need not open them."""
# Module with a function `extract(file, builder)` for each format.
_MODULES: Final = {
    "text": "plain_text", "html": "html_document", "email": "email_message", "pdf": "pdf", "zip": "archives",
}  # fmt: skip
_OLE_MARK: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_SAMPLE_BYTES: Final = 1 << 20
_ENCRYPTED_PACKAGE: Final = "EncryptedPackage".encode("utf-16-le")
# The PDF header may follow other bytes.
_PDF_HEADER_BYTES: Final = 1024


def is_probably_text(head: bytes) -> bool:
    """Return whether a file that starts with `head` is text or has a supported format, as far as these bytes show."""
    file_format = find_format(head)
    if file_format is not None:
        return head.startswith((b"%PDF-", b"PK\x03\x04")) and not file_format.is_container
    return b"\0" not in head or bool(find_byte_order_mark(head)[1] or find_unmarked_utf16(head))


def extract(file: BufferedReader, name: str, builder: DocumentBuilder) -> None:
    """Add the text of an open file to `builder`. `name` is the name of the file.

    Raises DocumentError whose message has no file name, OSError, and any exception of a parser for a damaged file.
    """
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    kind = _choose_kind(file, head, name)
    module = importlib.import_module(f"edgechat.documents.extraction.{_MODULES[kind]}")
    extract_kind: Callable[[BufferedReader, DocumentBuilder], None] = module.extract
    extract_kind(file, builder)


def _choose_kind(file: BufferedReader, head: bytes, name: str) -> str:
    """Return the format of a file, a key of `_MODULES`. Raises DocumentError for an unsupported format."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    expected_kind = _KINDS.get(extension, "text")
    if b"%PDF-" in (head[:_PDF_HEADER_BYTES] if expected_kind == "pdf" else head[:5]):
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(_OLE_MARK):
        raise DocumentError(_describe_ole(file))
    file_format = find_format(head)
    if file_format is not None:
        raise DocumentError(_describe_format(file_format))
    if expected_kind in {"pdf", "zip"}:
        if not head:
            raise DocumentError("The file is empty.")
        raise DocumentError(
            f"Its name ends in .{extension}, but its content has another format or is damaged. Open it in the program "
            "that made it, and save it again."
        )
    if expected_kind == "text" and head[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "text" if extension else "html"
    return expected_kind


def _describe_ole(file: BufferedReader) -> str:
    """Describe a file in the container of old Office documents, in which encrypted new ones are saved, too."""
    if _ENCRYPTED_PACKAGE in file.read(_OLE_SAMPLE_BYTES):
        return "It is encrypted with a password. Save a copy without a password."
    return "It is an Office document of before 2007. Save it as DOCX, PPTX or XLSX."


def _describe_format(file_format: FileFormat) -> str:
    return f"It is {file_format.name}. {file_format.advice or _SUPPORTED}"
