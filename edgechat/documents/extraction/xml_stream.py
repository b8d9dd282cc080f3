"""XML parser that calls methods for elements and text, without document types, entities and network access.

It holds no tree, so that neither the depth nor the size of a file matters.
"""

from __future__ import annotations

from typing import Any, Final, Protocol
from xml.parsers import expat

from edgechat.errors import DocumentError
from edgechat.humanize import format_size

_CHUNK_BYTES: Final = 1 << 16
_SEPARATOR: Final = " "
# Maximum length of the text between two tags; the text of a whole document is shorter.
_MAX_TEXT_CHARS: Final = 64 << 20
_NO_MEMORY: Final = 1  # XML_ERROR_NO_MEMORY of expat
RELATIONSHIP: Final = "relationship:"
"""Beginning of the names of attributes in the namespace of relationships, such as `relationship:id`."""


class ByteStream(Protocol):
    """File that is read in chunks."""

    def read(self, n_bytes: int, /) -> bytes: ...


class XmlHandler:
    """Receives the elements and the text of an XML file. Names have no namespace. Methods may raise StopParsing."""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""

    def end(self, name: str) -> None:
        """End an element."""

    def text(self, text: str) -> None:
        """Receive text. The text of one element may come in several calls."""


class StopParsing(Exception):  # noqa: N818  (not an error)
    """Raised by a handler that needs no more of a file."""


def parse_xml(stream: ByteStream, handler: XmlHandler, name: str) -> None:
    """Parse an XML file. `name` describes it in messages. Raises DocumentError for invalid XML or a document type."""
    parser: Any = expat.ParserCreate(namespace_separator=_SEPARATOR)
    parser.buffer_text = True
    n_chars = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal n_chars
        n_chars = 0
        handler.start(_localize(tag), _localize_keys(attributes))

    def receive(text: str) -> None:
        nonlocal n_chars
        n_chars += len(text)
        if n_chars > _MAX_TEXT_CHARS:
            raise DocumentError(f"it has {format_size(_MAX_TEXT_CHARS)} of text without a tag, as a ZIP bomb has.")
        handler.text(text)

    def refuse_document_type(*_: object) -> None:
        raise DocumentError(f"its part {name} declares a document type, as only a malicious file does.")

    parser.StartElementHandler, parser.CharacterDataHandler = start, receive
    parser.EndElementHandler = lambda tag: handler.end(_localize(tag))
    parser.StartDoctypeDeclHandler = refuse_document_type
    try:
        while data := stream.read(_CHUNK_BYTES):
            parser.Parse(data, False)
        parser.Parse(b"", True)
    except StopParsing:
        pass
    except expat.ExpatError as error:
        if error.code == _NO_MEMORY:
            raise MemoryError from error
        place = f"line {error.lineno}: {expat.ErrorString(error.code)}"
        raise DocumentError(f"it is damaged: its part {name} is not valid XML ({place}).") from error
    finally:  # the parser and its handlers refer to each other
        parser.StartElementHandler = parser.EndElementHandler = parser.CharacterDataHandler = None


def _localize(name: str) -> str:
    return name.rpartition(_SEPARATOR)[2]


def _localize_keys(attributes: dict[str, str]) -> dict[str, str]:
    if not any(_SEPARATOR in key for key in attributes):
        return attributes
    result = {}
    for key, value in attributes.items():
        namespace, _, name = key.rpartition(_SEPARATOR)
        result[f"{RELATIONSHIP}{name}" if namespace.endswith("/relationships") else name] = value
    return result
