"""Text of PDF documents: one section for each page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BufferedReader
from typing import TYPE_CHECKING, Any, Final

from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.errors import DocumentError
from edgechat.humanize import format_count

if TYPE_CHECKING:
    import pypdf

MISSING_MESSAGE: Final = (
    "PDF files need the package pypdf. Install edgechat[documents] instead of edgechat, or add it with "
    "`pipx inject edgechat pypdf`."
)
_MISSING_AES_MESSAGE: Final = (
    "it is encrypted with AES, which needs one more package. Add it with `pipx inject edgechat cryptography`."
)
_MAX_LISTED_RANGES: Final = 10
# Predicates for one page and for several pages.
_LATE: Final = ("was not read in time", "were not read in time")
_DAMAGED: Final = ("is damaged and was not read", "are damaged and were not read")
_ONLY_PICTURES: Final = ("has no text, only a picture, as in a scan", "have no text, only pictures, as in a scan")


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the text of each page; the notice names the pages without text.

    Raises DocumentError if pypdf is not installed, or if the document has no text, is encrypted or has too many pages.
    """
    try:
        import pypdf.errors
    except ImportError:
        raise DocumentError(MISSING_MESSAGE) from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)  # it logs each oddity of a damaged file
    try:
        reader = _open_reader(file)
        pages = _list_pages(reader, builder.limits.max_pages)
        builder.title = _read_title(reader)
        _extract_pages(pages, builder)
    except pypdf.errors.DependencyError:
        raise DocumentError(_MISSING_AES_MESSAGE) from None
    except pypdf.errors.LimitReachedError as error:
        raise DocumentError(f"it exceeds a limit: {' '.join(str(error).split())}") from error
    except pypdf.errors.PyPdfError as error:
        raise DocumentError(f"it is damaged or incomplete: {' '.join(str(error).split())}") from error


def _read_title(reader: pypdf.PdfReader) -> str:
    """Return the title of a document; "" if it has none or the title is damaged."""
    try:
        return str((reader.metadata and reader.metadata.title) or "")
    except Exception:  # noqa: BLE001  (damaged metadata can raise any exception in pypdf)
        return ""


def _open_reader(file: BufferedReader) -> pypdf.PdfReader:
    """Open a document, which may be encrypted if it needs no password to be read. Raises DocumentError otherwise."""
    import pypdf

    try:
        reader = pypdf.PdfReader(file)
        is_open = not reader.is_encrypted or bool(reader.decrypt(""))
    except NotImplementedError:
        raise DocumentError("its encryption is not supported. Save a copy without a password.") from None
    if not is_open:
        raise DocumentError("it is encrypted with a password. Save a copy without a password.")
    return reader


def _list_pages(reader: pypdf.PdfReader, max_pages: int) -> Sequence[Any]:
    """Return the pages of a document. Raises DocumentError if it has none or too many."""
    from pypdf.errors import LimitReachedError

    message = f"it has more than {format_count(max_pages, 'page')}. Split it into smaller files."
    try:
        declared = reader.root_object["/Pages"].get_object().get("/Count", 0)  # type: ignore[union-attr]
        if isinstance(declared, int) and declared > max_pages:
            raise DocumentError(message)
        n_pages = len(reader.pages)
    except LimitReachedError:
        raise DocumentError(message) from None
    if n_pages > max_pages:
        raise DocumentError(message)
    if not n_pages:
        raise DocumentError("it has no pages.")
    return reader.pages


def _extract_pages(pages: Sequence[Any], builder: DocumentBuilder) -> None:
    """Add the text of `pages`. Raises DocumentError if none has text."""
    picture_pages: list[int] = []
    damaged_pages: list[int] = []
    n_pages = n_read = len(pages)
    for number in range(1, n_pages + 1):
        if builder.is_full or builder.is_late:
            n_read = number - 1
            break
        text, has_picture = _read_page(pages, number)
        if text is None:
            damaged_pages.append(number)
        elif text:
            builder.add(text, page=number)
        elif has_picture:
            picture_pages.append(number)
    late_pages = () if builder.is_full else range(n_read + 1, n_pages + 1)
    if not builder.has_text:
        if late_pages:
            raise DocumentError("reading it takes too long. Split it into smaller files.")
        raise DocumentError(_describe_empty(n_pages, len(picture_pages), len(damaged_pages)))
    for numbers, predicates in ((late_pages, _LATE), (picture_pages, _ONLY_PICTURES), (damaged_pages, _DAMAGED)):
        if numbers:
            builder.add_notice(_describe_pages(numbers, *predicates))


def _read_page(pages: Sequence[Any], number: int) -> tuple[str | None, bool]:
    """Return the text of a page, and whether it has a picture; None if the page is damaged.

    Raises pypdf's DependencyError if the page is encrypted with AES and the package cryptography is not installed.
    """
    from pypdf.errors import DependencyError

    try:
        page = pages[number - 1]
        text = page.extract_text().strip()
        return text, not text and _has_picture(page)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if isinstance(error, DependencyError) and "cryptography" in str(error):
            raise  # any other exception can come from a damaged page
        return None, False


def _has_picture(page: Any) -> bool:
    """Return whether a page refers to a picture or to a form, which can contain one."""
    resources = page.get("/Resources")
    objects = resources.get_object().get("/XObject") if resources is not None else None
    return bool(objects is not None and objects.get_object())


def _describe_empty(n_pages: int, n_picture_pages: int, n_damaged_pages: int) -> str:
    if n_damaged_pages:
        return (
            f"it is damaged: {n_damaged_pages} of {format_count(n_pages, 'page')} cannot be read, the others are empty."
        )
    if n_picture_pages:
        pages = "its page is a picture" if n_pages == 1 else f"its {n_pages} pages are pictures"
        return f"it has no text: {pages}, as in a scan. Recognise the text first, for example with `ocrmypdf`."
    return f"it has no text on its {format_count(n_pages, 'page')}."


def _describe_pages(numbers: Sequence[int], singular: str, plural: str) -> str:
    """Return a sentence about pages, such as `Pages 1, 3-7 have no text.`, with one of two predicates."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    if len(texts) > _MAX_LISTED_RANGES:
        texts[_MAX_LISTED_RANGES:] = [f"and {sum(b - a + 1 for a, b in ranges[_MAX_LISTED_RANGES:])} more"]
    return f"Page {texts[0]} {singular}." if len(numbers) == 1 else f"Pages {', '.join(texts)} {plural}."
