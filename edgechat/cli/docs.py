"""`edgechat docs`: add, list, update, remove and search collections of documents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.confirmation import confirm_deletion
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FilePath, IntRange, complete_collection, json_option
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.cli.session_factory import load_settings
from edgechat.errors import DocumentError, UsageError
from edgechat.humanize import format_count, format_size, shorten
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.documents.collection import CollectionInfo, DocumentProblem
    from edgechat.documents.indexing import UpdateSummary
    from edgechat.documents.library import DocumentLibrary
    from edgechat.documents.search import FoundChunk
    from edgechat.documents.search_models import SearchModels

# Number of unreadable files that are listed; the others are counted.
_MAX_SHOWN_PROBLEMS: Final = 10
_MIN_SNIPPET_CHARS: Final = 40
_INDENT: Final = "    "


embeddings_option = click.option(
    "--embeddings/--no-embeddings",
    "with_embeddings",
    default=True,
    help="Compute embeddings if an embedding model is installed; otherwise only keywords are searched.",
)


@click.group()
def docs() -> None:
    """Add, list, search and remove collections of documents.

    A collection has a name and the text of folders and files: text, Markdown, source code, HTML, PDF, Office files,
    EPUB, e-mails and CSV. `edgechat ask --docs NAME` and /docs NAME in the chat answer from a collection.
    """


@docs.command()
@click.argument("sources", metavar="PATH...", nargs=-1, required=True, type=FilePath())
@click.option(
    "--name",
    metavar="NAME",
    shell_complete=complete_collection,
    help="Name of the collection; by default the folder's.",
)
@embeddings_option
@json_option
def add(sources: tuple[Path, ...], *, name: str | None, with_embeddings: bool, as_json: bool) -> None:
    """Add folders or files to a collection.

    Makes the collection if it does not exist. Hidden files, files that .gitignore excludes, and links that lead out of
    a folder are left out. Files that cannot be read are listed with the reason; the others are added.
    """
    from edgechat.documents.naming import choose_name

    library = _open_library()
    missing_source = next((source for source in sources if not os.path.exists(source)), None)  # noqa: PTH110
    if missing_source is not None:
        raise DocumentError(f"Cannot add {missing_source}: there is no such file or folder.")
    name = name if name is not None else choose_name(sources, library.list())
    is_new = name not in library.names()
    with _open_models() as models:
        summary, info = _update(library, name, models if with_embeddings else None, sources)
    if is_new and not info.n_documents:
        library.remove(name)
        _show_problems(info.problems)
        reason = "none of the files could be read" if summary.failed else "there are no documents"
        raise DocumentError(f"The collection {name} was not made, because {reason} in {_join_paths(sources)}.")
    _print_update(summary, info, as_json=as_json)
    if not as_json and is_new:
        echo_note(escape_controls(f'edgechat: Ask about it with: edgechat ask --docs {_quote(name)} "…"'))


@docs.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the collections."""
    infos = _open_library().list()
    if as_json:
        echo_json(infos)
        return
    if not infos:
        echo_note("edgechat: No collections yet. `edgechat docs add FOLDER` makes one.")
    for info in infos:
        click.echo(escape_controls(f"{info.name:<24}  {_describe(info)}"))
        for source in info.sources:
            click.echo(escape_controls(f"{_INDENT}{source}"))
        n_problems = len(info.problems)
        if not info.n_documents and n_problems:
            echo_note(escape_controls(f"edgechat: {info.name}: {info.problems[0].reason}"))
        elif n_problems:
            click.echo(f"{_INDENT}{format_count(n_problems, 'file')} could not be read (--json lists them)")


@docs.command()
@click.argument("name", required=False, shell_complete=complete_collection)
@embeddings_option
@json_option
def update(name: str | None, *, with_embeddings: bool, as_json: bool) -> None:
    """Update one collection, or all of them.

    Reads new and changed files, removes those that no longer exist, and computes missing embeddings. An interrupted
    update continues where it stopped. A damaged collection is made again from its folders.
    """
    library = _open_library()
    names = [name] if name is not None else library.names()
    if not names and not as_json:
        echo_note("edgechat: No collections yet. `edgechat docs add FOLDER` makes one.")
    results, errors = [], []
    with _open_models() as models:
        for collection_name in names:
            try:
                summary, info = _update(library, collection_name, models if with_embeddings else None)
            except DocumentError as error:
                if name is not None:
                    raise
                errors.append(error)
                echo_note(f"edgechat: {escape_controls(str(error))}")
                continue
            if as_json:
                results.append(_make_object(summary, info))
            else:
                _print_update(summary, info)
    if as_json:
        echo_json(results[0] if name is not None else results)
    if errors:
        raise DocumentError(f"{format_count(len(errors), 'collection')} could not be updated.")


@docs.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_collection)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def remove(names: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Remove collections; the files in their folders stay.

    Conversations keep the passages that their messages have already.
    """
    from edgechat import paths
    from edgechat.prefix.shared_prefix import delete_pinned

    library = _open_library()
    for name in names:
        if name not in library.names():
            library.open(name)  # raises the error with the names of the collections
    if not yes:
        lines = "\n".join(f"  {escape_controls(name)}  {_describe(library.describe(name))}" for name in names)
        confirm_deletion(f"{lines}\nRemove the index? The files stay.", err=True)
    for name in names:
        library.remove(name)
        delete_pinned(paths.prefix_dir(), name)
    if as_json:
        echo_json(names)


@docs.command()
@click.argument("query")
@click.option(
    "--docs", "names", multiple=True, metavar="NAME", shell_complete=complete_collection,
    help="Search only this collection; may be repeated.",
)  # fmt: skip
@click.option(
    "-n", "--limit", type=IntRange(1, 1000), default=8, show_default=True, metavar="N",
    help="Maximum number of results.",
)  # fmt: skip
@json_option
def search(query: str, *, names: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search the documents for QUERY, without asking a model.

    Searches by keywords and, if an embedding model is installed, by meaning. If nothing matches, prints a note on
    standard error; the exit code is 0.
    """
    from contextlib import ExitStack

    from edgechat.documents.search import search as search_collections

    if not query.strip():
        raise UsageError("The query is empty. Give at least one word.")
    library = _open_library()
    searched_names = list(dict.fromkeys(names)) or library.names()
    if not searched_names:
        raise DocumentError("There are no collections yet. `edgechat docs add FOLDER` makes one.")
    with ExitStack() as stack:
        collections = [stack.enter_context(library.open(name)) for name in searched_names]
        infos = [collection.describe() for collection in collections]
        models, settings = stack.enter_context(_open_models()), load_settings()
        embedder = models.open_embedder(settings) if any(info.n_embedded for info in infos) else None
        results = search_collections(
            collections, query, embedder=embedder, reranker=models.open_reranker(settings), n_results=limit
        )
    if as_json:
        echo_json({"query": query, "collections": searched_names, "results": [_make_result(r) for r in results]})
        return
    if not results:
        n_documents = sum(info.n_documents for info in infos)
        echo_note(f"edgechat: Nothing found in {format_count(n_documents, 'document')}.")
    n_columns = shutil.get_terminal_size().columns
    for result in results:
        prefix = f"{result.collection}: " if len(searched_names) > 1 else ""
        heading = f" ({result.chunk.heading})" if result.chunk.heading else ""
        click.echo(escape_controls(shorten(f"{prefix}{_format_place(result)}{heading}", n_columns)))
        snippet = shorten(" ".join(result.chunk.text.split()), max(_MIN_SNIPPET_CHARS, 2 * n_columns - 8))
        click.echo(escape_controls(f"{_INDENT}{snippet}"))


def _open_library() -> DocumentLibrary:
    from edgechat import paths
    from edgechat.documents.library import DocumentLibrary

    return DocumentLibrary(paths.documents_dir())


@contextmanager
def _open_models() -> Iterator[SearchModels]:
    from edgechat.documents.search_models import SearchModels

    models = SearchModels()
    try:
        yield models
    finally:
        models.close()


def _update(
    library: DocumentLibrary, name: str, models: SearchModels | None, add: Sequence[Path] = ()
) -> tuple[UpdateSummary, CollectionInfo]:
    """Update a collection with progress on standard error; make it if sources are added. Raises DocumentError.

    Computes embeddings if `models` is not None and has an embedding model.
    """
    from edgechat.documents import indexing

    is_new = bool(add) and name not in library.names()
    with library.create(name) if is_new else library.open(name, rebuild_damaged=True) as collection:
        with _show_progress(name) as status:
            embedder = models.open_embedder(load_settings(), status.show) if models is not None else None
            summary = indexing.update(
                collection, add=add, embedder=embedder,
                on_progress=lambda progress: status.show(f"{name}: {progress.message}"),
            )  # fmt: skip
        if models is not None and models.problem:
            echo_note(f"edgechat: No embeddings were computed, because {escape_controls(models.problem)}")
        for warning in summary.warnings:
            echo_note(f"edgechat: {escape_controls(warning)}")
        return summary, collection.describe()


@contextmanager
def _show_progress(name: str) -> Iterator[StderrStatus]:
    status = StderrStatus(print_lines=True)
    try:
        yield status
    except KeyboardInterrupt:
        status.clear()
        echo_note(escape_controls(f"edgechat: Stopped. `edgechat docs update {_quote(name)}` continues."))
        raise
    finally:
        status.clear()


def _print_update(summary: UpdateSummary, info: CollectionInfo, *, as_json: bool = False) -> None:
    _show_problems(info.problems)
    if as_json:
        echo_json(_make_object(summary, info))
        return
    counts = {
        "added": summary.added, "changed": summary.changed, "removed": summary.removed,
        "could not be read": summary.failed,
    }  # fmt: skip
    changes = ", ".join(f"{n:,} {text}" for text, n in counts.items() if n) or "no changes"
    click.echo(escape_controls(f"{info.name}: {_describe(info)}; {changes}"))


def _show_problems(problems: Sequence[DocumentProblem]) -> None:
    """Print unreadable files with their reasons on standard error."""
    for problem in problems[:_MAX_SHOWN_PROBLEMS]:
        reason = " ".join(problem.reason.split())
        echo_note(escape_controls(f"edgechat: {shorten(problem.path, 120)}: {shorten(reason, 300)}"))
    n_more = len(problems) - _MAX_SHOWN_PROBLEMS
    if n_more > 0:
        echo_note(f"edgechat: {format_count(n_more, 'other file')} could not be read; --json lists them.")


def _describe(info: CollectionInfo) -> str:
    """Return the numbers of documents and passages, the size, and the search methods of a collection."""
    method = f"keywords and {info.embedding_model}" if info.embedding_model else "keywords"
    if info.embedding_model and info.n_embedded < info.n_chunks:
        method += f" ({info.n_embedded:,} of {info.n_chunks:,} passages)"
    return (
        f"{format_count(info.n_documents, 'document')}, {format_count(info.n_chunks, 'passage')}, "
        f"{format_size(info.n_bytes)}, {method}"
    )


def _make_object(summary: UpdateSummary, info: CollectionInfo) -> dict[str, Any]:
    return {"name": info.name, "update": summary, "collection": info}


def _make_result(result: FoundChunk) -> dict[str, Any]:
    chunk = result.chunk
    return {
        "collection": result.collection, "document": result.document, "path": result.path, "heading": chunk.heading,
        "page": chunk.page, "last_page": chunk.last_page, "first_line": chunk.first_line, "last_line": chunk.last_line,
        "text": chunk.text, "scores": result.scores,
    }  # fmt: skip


def _format_place(result: FoundChunk) -> str:
    from edgechat.documents.passages import Passage

    chunk = result.chunk
    return Passage(
        number=1, collection=result.collection, document=result.document, text="", page=chunk.page,
        last_page=chunk.last_page, first_line=chunk.first_line, last_line=chunk.last_line,
    ).place  # fmt: skip


def _join_paths(sources: Sequence[Path]) -> str:
    return ", ".join(str(source) for source in sources)


def _quote(name: str) -> str:
    import shlex

    return shlex.quote(name)
