"""ZIP archives with the parts of a document, such as DOCX and EPUB files, with a limit of the unpacked size."""

from __future__ import annotations

import posixpath
import urllib.parse
import zipfile
from io import BufferedReader
from typing import IO, Final

from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.xml_stream import RELATIONSHIP, XmlHandler, parse_xml
from edgechat.errors import DocumentError
from edgechat.humanize import format_size

_IS_ENCRYPTED: Final = 1
"""Bit in the flags of a file in an archive."""
_CHUNK_BYTES: Final = 1 << 16


class PartStream:
    """Content of one part; counts the bytes that are read."""

    def __init__(self, file: IO[bytes], package: ZipPackage) -> None:
        self._file = file
        self._package = package

    def read(self, n_bytes: int, /) -> bytes:
        """Read at most `n_bytes`. Raises DocumentError if the package exceeds its limit."""
        data = self._file.read(n_bytes)
        self._package.count(len(data))
        return data


class ZipPackage:
    """Archive with the parts of a document."""

    def __init__(self, file: BufferedReader, builder: DocumentBuilder) -> None:
        """Read the list of the parts. Raises zipfile.BadZipFile for a damaged archive."""
        self._archive = zipfile.ZipFile(file)
        self._max_bytes = builder.limits.max_unpacked_bytes
        self._n_bytes = 0
        self.names = frozenset(self._archive.namelist())

    def count(self, n_bytes: int) -> None:
        """Add to the number of unpacked bytes. Raises DocumentError beyond the limit."""
        self._n_bytes += n_bytes
        if self._n_bytes > self._max_bytes:
            limit = format_size(self._max_bytes)
            raise DocumentError(f"it unpacks to more than {limit}, as a ZIP bomb does. Save its text as a text file.")

    def open(self, name: str) -> PartStream:
        """Open a part. Raises DocumentError if it is missing or encrypted."""
        try:
            info = self._archive.getinfo(name)
            if info.flag_bits & _IS_ENCRYPTED:
                raise DocumentError("it is encrypted with a password. Save a copy without a password.")
            return PartStream(self._archive.open(info), self)
        except KeyError:
            raise DocumentError(f"it is damaged: its part {name} is missing.") from None
        except NotImplementedError as error:
            raise DocumentError(f"it is compressed by a method that is not supported: {error}.") from error

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the first `max_bytes` of a part. Raises the same errors as `open`."""
        stream = self.open(name)
        chunks, n_left = [], max_bytes
        while n_left > 0 and (chunk := stream.read(min(n_left, _CHUNK_BYTES))):
            chunks.append(chunk)
            n_left -= len(chunk)
        return b"".join(chunks)

    def parse(self, name: str, handler: XmlHandler) -> None:
        """Parse a part that is XML. Raises the same errors as `open` and `parse_xml`."""
        parse_xml(self.open(name), handler, name)

    def read_relationships(self, name: str) -> dict[str, tuple[str, str]]:
        """Return the relationships of a part: by identifier, the kind and the name of another part."""
        folder, _, file_name = name.rpartition("/")
        relationships = _Relationships(folder)
        path = posixpath.join(folder, "_rels", f"{file_name}.rels")
        if path in self.names:
            self.parse(path, relationships)
        return relationships.targets


class _Relationships(XmlHandler):
    """Relationships of a part of an Office document."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.targets: dict[str, tuple[str, str]] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "Relationship" and attributes.get("TargetMode") != "External":
            target = resolve(self._folder, attributes.get("Target", ""))
            self.targets[attributes.get("Id", "")] = (attributes.get("Type", "").rpartition("/")[2], target)


def resolve(folder: str, target: str) -> str:
    """Return the name of a part from a reference in another part in `folder`."""
    path = urllib.parse.unquote(target.partition("#")[0])
    return posixpath.normpath(path.removeprefix("/") if path.startswith("/") else posixpath.join(folder, path))


def get_relationship(attributes: dict[str, str]) -> str:
    """Return the identifier of a relationship in the attributes of an element."""
    return attributes.get(f"{RELATIONSHIP}id", "")
