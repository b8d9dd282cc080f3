"""Text of e-books (EPUB): one section for each file in reading order."""

from __future__ import annotations

from typing import Final

from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.html_document import convert_html, decode_html
from edgechat.documents.extraction.xml_stream import XmlHandler
from edgechat.documents.extraction.zip_package import ZipPackage, resolve
from edgechat.errors import DocumentError

_CONTAINER: Final = "META-INF/container.xml"
_ENCRYPTION: Final = "META-INF/encryption.xml"
_HTML_TYPES: Final = frozenset(("application/xhtml+xml", "text/html", "application/x-dtbook+xml"))


def extract(package: ZipPackage, builder: DocumentBuilder) -> None:
    """Add the chapters of the book. Raises DocumentError if they are encrypted."""
    container, encryption = _Attributes("rootfile", "full-path"), _Attributes("CipherReference", "URI")
    package.parse(_CONTAINER, container)
    if _ENCRYPTION in package.names:
        package.parse(_ENCRYPTION, encryption)
    if not container.values:
        raise DocumentError("it is damaged: its container.xml names no book.")
    name = container.values[0]
    book = _Book(name.rpartition("/")[0])
    package.parse(name, book)
    builder.title = book.title
    encrypted_names = {resolve("", uri) for uri in encryption.values}
    n_missing = 0
    chapters = book.chapters
    for number, chapter in enumerate(chapters, start=1):
        if chapter in encrypted_names:
            raise DocumentError("it is protected by DRM, so that only the program of its seller can read it.")
        if builder.is_full:
            break
        if builder.is_late:
            builder.add_notice(f"Only the first {number - 1} of its {len(chapters)} chapters were read in time.")
            break
        if chapter not in package.names:
            n_missing += 1
            continue
        data = package.read(chapter, builder.limits.max_text_bytes)
        builder.add(convert_html(decode_html(data, builder), builder).text)
    if n_missing:
        builder.add_notice(f"{n_missing} of its {len(chapters)} chapters are missing in the file.")
    if not builder.has_text:
        builder.add_notice("The book has no text, only pictures.")


class _Attributes(XmlHandler):
    """Values of one attribute of all elements with a name."""

    def __init__(self, element: str, attribute: str) -> None:
        self._element = element
        self._attribute = attribute
        self.values: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == self._element and self._attribute in attributes:
            self.values.append(attributes[self._attribute])


class _Book(XmlHandler):
    """Title of a book, and the names of its chapters in reading order."""

    def __init__(self, folder: str) -> None:
        self.title = ""
        self._folder = folder
        self._files: dict[str, tuple[str, bool]] = {}
        self._order: list[str] = []
        self._is_title = False

    @property
    def chapters(self) -> list[str]:
        """Names of the parts with chapters, without the table of contents."""
        files = [self._files[i] for i in dict.fromkeys(self._order) if i in self._files]
        return list(dict.fromkeys(name for name, is_contents in files if not is_contents))

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "item" and attributes.get("media-type") in _HTML_TYPES:
            is_contents = "nav" in attributes.get("properties", "").split()
            self._files[attributes.get("id", "")] = (resolve(self._folder, attributes.get("href", "")), is_contents)
        elif name == "itemref":
            self._order.append(attributes.get("idref", ""))
        self._is_title = name == "title" and not self.title

    def text(self, text: str) -> None:
        if self._is_title:
            self.title += text

    def end(self, name: str) -> None:  # noqa: ARG002  (of XmlHandler)
        self._is_title = False
