"""Output of `edgechat docs`: descriptions of collections, problems with files, and results as text and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import echo_note
from edgechat.humanize import format_count, format_size, shorten
from edgechat.terminal import escape_controls, escape_line

if TYPE_CHECKING:
    from edgechat.documents.collection import CollectionInfo
    from edgechat.documents.indexing import UpdateSummary
    from edgechat.documents.search import FoundChunk

# Number of files with problems, and with notices, that are listed; the others are counted.
_MAX_SHOWN_PROBLEMS: Final = 10
_PARTLY_READ: Final = "could be read only in part"
_INDENT: Final = "    "


def print_collection(info: CollectionInfo) -> None:
    """Print the description of a collection, its sources, and the numbers of files with problems."""
    click.echo(escape_controls(f"{info.name:<24}  {describe_collection(info)}"))
    for source in info.sources:
        click.echo(escape_line(f"{_INDENT}{source}"))
    if not info.n_documents and info.problems:
        echo_note(escape_controls(f"edgechat: {info.name}: {info.problems[0].reason}"))
    elif info.problems:
        click.echo(f"{_INDENT}{format_count(len(info.problems), 'file')} could not be read (--json lists them)")
    if info.notices:
        click.echo(f"{_INDENT}{format_count(len(info.notices), 'file')} {_PARTLY_READ} (--json lists them)")


def print_update(summary: UpdateSummary, info: CollectionInfo, *, as_json: bool = False) -> None:
    print_problems(info)
    if as_json:
        echo_json(make_update_object(summary, info))
        return
    click.echo(escape_controls(f"{info.name}: {describe_collection(info)}; {summary.describe_changes()}"))


def print_problems(info: CollectionInfo) -> None:
    """Print the files that could not be read, or only in part, with the reasons on standard error."""
    for problems, description in ((info.problems, "could not be read"), (info.notices, _PARTLY_READ)):
        for problem in problems[:_MAX_SHOWN_PROBLEMS]:
            reason = " ".join(problem.reason.split())
            echo_note(escape_line(f"edgechat: {shorten(problem.path, 120)}: {shorten(reason, 300)}"))
        n_more = len(problems) - _MAX_SHOWN_PROBLEMS
        if n_more > 0:
            echo_note(f"edgechat: {format_count(n_more, 'other file')} {description}; --json lists them.")


def describe_collection(info: CollectionInfo) -> str:
    """Return the numbers of documents and passages, the size, and the search methods of a collection."""
    method = f"keywords and {info.embedding_model}" if info.embedding_model else "keywords"
    if info.embedding_model and info.n_embedded < info.n_chunks:
        method += f" ({info.n_embedded:,} of {info.n_chunks:,} passages)"
    return (
        f"{format_count(info.n_documents, 'document')}, {format_count(info.n_chunks, 'passage')}, "
        f"{format_size(info.n_bytes)}, {method}"
    )


def make_update_object(summary: UpdateSummary, info: CollectionInfo) -> dict[str, Any]:
    return {"name": info.name, "update": summary, "collection": info}


def make_result_object(result: FoundChunk) -> dict[str, Any]:
    chunk = result.chunk
    return {
        "collection": result.collection, "document": result.document, "path": result.path, "heading": chunk.heading,
        "page": chunk.page, "last_page": chunk.last_page, "first_line": chunk.first_line, "last_line": chunk.last_line,
        "text": chunk.text, "scores": result.scores,
    }  # fmt: skip


def format_place(result: FoundChunk) -> str:
    from edgechat.documents.passages import Passage

    chunk = result.chunk
    return Passage(
        number=1, collection=result.collection, document=result.document, text="", page=chunk.page,
        last_page=chunk.last_page, first_line=chunk.first_line, last_line=chunk.last_line,
    ).place  # fmt: skip
