"""Collections of plain text files for the tests: a reader without extraction, and a fake embedding model."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edgechat.documents.collection import Collection
from edgechat.documents.indexing import FileReader, UpdateSummary, update
from edgechat.documents.text import Chunk, ExtractedDocument, Section
from edgechat.errors import DocumentError


class FoundTextFile(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    name: str
    size_bytes: int = 0
    mtime_ns: int = 0
    problem: str = ""


def find_text_files(source: Path) -> Iterator[FoundTextFile]:
    files = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
    for file in files:
        status = file.stat()
        name = file.relative_to(source).as_posix() if source.is_dir() else file.name
        yield FoundTextFile(path=file, name=name, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


class TextExtractor:
    """Reads text files; `on_extract` is called before a file is read."""

    def __init__(self, on_extract: Callable[[Path], None] = lambda path: None) -> None:
        self.paths: list[Path] = []
        self.on_extract = on_extract

    def extract(self, path: Path, is_cancelled: Callable[[], bool]) -> ExtractedDocument:
        self.paths.append(path)
        self.on_extract(path)
        text = path.read_text(encoding="utf-8")
        if "unreadable" in text:
            raise DocumentError("The file is unreadable.")
        return ExtractedDocument(sections=(Section(text=text, first_line=1),), title=path.stem)


def split_paragraphs(document: ExtractedDocument, name: str) -> list[Chunk]:
    chunks, line = [], 1
    for paragraph in document.sections[0].text.split("\n\n"):
        n_lines = paragraph.count("\n")
        if paragraph.strip():
            chunks.append(Chunk(text=paragraph, first_line=line, last_line=line + n_lines))
        line += n_lines + 2
    return chunks


def make_reader(extractor: TextExtractor) -> FileReader:
    return FileReader(find_text_files, lambda: contextlib.nullcontext(extractor), split_paragraphs)


class WordEmbedder:
    """Embeds a text as the sum of a random direction per word, so that texts with common words are similar."""

    def __init__(self, name: str = "words", n_embd: int = 16) -> None:
        self.model_name, self.model_id, self.n_embd = name, f"{name}-id", n_embd
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        if not is_query:
            self.texts += texts
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> array[float]:
        sums = [0.0] * self.n_embd
        for word in re.findall(r"\w+", text.lower()):
            seed = hashlib.sha256(word.encode()).digest()
            sums = [value + seed[i % 32] / 127.5 - 1 for i, value in enumerate(sums)]
        norm = math.sqrt(sum(value * value for value in sums)) or 1.0
        return array("f", [value / norm for value in sums])


def read_contents(collection: Collection) -> dict[str, list[tuple[str, int | None]]]:
    """Return the chunks of all documents by path, after checking that all tables agree with each other."""
    with collection.database.read() as db:
        db.execute("INSERT INTO chunk_search (chunk_search, rank) VALUES ('integrity-check', 1)")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        counts = db.execute(
            "SELECT d.n_chunks, (SELECT count(*) FROM chunks c WHERE c.document_id = d.id) FROM documents d"
        ).fetchall()
        assert all(stored == actual for stored, actual in counts)
        n_texts = db.execute("SELECT count(*) FROM chunk_search_docsize").fetchone()[0]
        assert n_texts == db.execute("SELECT count(*) FROM chunks").fetchone()[0]
        vector_ids = [
            chunk_id for (ids,) in db.execute("SELECT chunk_ids FROM vector_blocks") for chunk_id in array("q", ids)
        ]
        embedded = db.execute("SELECT id FROM chunks WHERE block IS NOT NULL ORDER BY id").fetchall()
        assert sorted(vector_ids) == [row[0] for row in embedded]
    contents: dict[str, list[tuple[str, int | None]]] = {}
    for stored in collection.iterate_chunks():
        contents.setdefault(stored.path, []).append((stored.chunk.text, stored.chunk.first_line))
    return contents


def write(path: Path, text: str, *, age_s: float = 60) -> None:
    """Write a file that was modified `age_s` ago, so that its time identifies its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    modified_ns = path.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(path, ns=(modified_ns, modified_ns))


def run(collection: Collection, *add: Path, extractor: TextExtractor | None = None, **options: object) -> UpdateSummary:
    return update(collection, add=add, reader=make_reader(extractor or TextExtractor()), **options)  # type: ignore[arg-type]
