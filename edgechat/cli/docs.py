"""`edgechat docs`: add, list, update, remove and search collections of documents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.confirmation import confirm_deletion
from edgechat.cli.docs_output import (
    describe_collection,
    format_place,
    make_result_object,
    make_update_object,
    print_collection,
    print_problems,
    print_update,
)
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FilePath, IntRange, complete_collection, json_option
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.cli.session_factory import load_settings
from edgechat.errors import DocumentError, UsageError
from edgechat.humanize import format_count, shorten
from edgechat.terminal import escape_controls, escape_line

if TYPE_CHECKING:
    from edgechat.documents.collection import Collection, CollectionInfo
    from edgechat.documents.indexing import UpdateSummary
    from edgechat.documents.library import DocumentLibrary
    from edgechat.documents.search_models import SearchModels

_MIN_EXCERPT_CHARS: Final = 40
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

    Creates the collection if it does not exist. Hidden files, files that .gitignore excludes, and links that lead out
    of a folder are left out. Files that cannot be read are listed with the reason; the others are added.
    """
    from edgechat.documents.naming import choose_name

    library = _open_library()
    missing_source = next((source for source in sources if not os.path.exists(source)), None)  # noqa: PTH110
    if missing_source is not None:
        raise DocumentError(f"Cannot add {missing_source}: there is no such file or folder.")
    is_chosen = name is None
    name = name if name is not None else choose_name(sources, library.list())
    is_new = name not in library.names()
    with _open_models() as models:
        summary, info = _update(library, name, models if with_embeddings else None, sources)
    if is_new and not info.n_documents:
        library.remove(name)
        print_problems(info)
        reason = "none of the files could be read" if summary.failed else "there are no documents"
        raise DocumentError(f"The collection {name} was not created, because {reason} in {_join_paths(sources)}.")
    if is_chosen and not is_new:
        verb = "is" if len(sources) == 1 else "are"
        echo_note(escape_controls(
            f"edgechat: {_join_paths(sources)} {verb} in the collection {name} already. For another one: --name NAME"
        ))  # fmt: skip
    print_update(summary, info, as_json=as_json)
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
        echo_note("edgechat: No collections yet. `edgechat docs add FOLDER` creates one.")
    for info in infos:
        print_collection(info)


@docs.command()
@click.argument("name", required=False, shell_complete=complete_collection)
@embeddings_option
@json_option
def update(name: str | None, *, with_embeddings: bool, as_json: bool) -> None:
    """Update one collection, or all of them.

    Reads new and changed files, removes those that no longer exist, and computes missing embeddings. An interrupted
    update continues where it stopped. A damaged collection is rebuilt from its folders.
    """
    library = _open_library()
    names = [name] if name is not None else library.names()
    if not names and not as_json:
        echo_note("edgechat: No collections yet. `edgechat docs add FOLDER` creates one.")
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
                results.append(make_update_object(summary, info))
            else:
                print_update(summary, info)
    if as_json:
        echo_json(results[0] if name is not None else results)
    if errors:
        raise DocumentError(
            f"{format_count(len(errors), 'collection')} could not be updated. "
            "The reasons are above; correct them and run `edgechat docs update` again."
        )


@docs.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_collection)
@click.option(
    "--source", "sources", multiple=True, metavar="PATH", type=FilePath(),
    help="Remove only this folder or file from the collection; may be repeated.",
)  # fmt: skip
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def remove(names: tuple[str, ...], *, sources: tuple[Path, ...], yes: bool, as_json: bool) -> None:
    """Remove collections, or a folder of one; the files stay.

    Conversations keep the passages that their messages have already.
    """
    library = _open_library()
    for name in names:
        if name not in library.names():
            library.open(name)  # raises the error with the names of the collections
    if sources:
        if len(names) > 1:
            raise UsageError("--source removes folders from one collection. Give one NAME.")
        info = _remove_sources(library, names[0], sources, needs_confirmation=not yes)
        if as_json:
            echo_json({"name": names[0], "collection": info})
        return
    if not yes:
        lines = "\n".join(f"  {escape_controls(name)}  {describe_collection(library.describe(name))}" for name in names)
        confirm_deletion(f"{lines}\nRemove the index? The files stay.", err=True)
    for name in names:
        library.remove(name)
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
    standard error; the exit code is 0. Without --docs, collections that cannot be used are left out with a note.
    """
    from edgechat.cli.docs_search import search_collections
    from edgechat.documents.excerpts import make_excerpt

    if not query.strip():
        raise UsageError("The query is empty. Give at least one word.")
    library = _open_library()
    searched_names = list(dict.fromkeys(names)) or library.names()
    if not searched_names:
        raise DocumentError("There are no collections yet. `edgechat docs add FOLDER` creates one.")
    with _open_models() as models:
        infos, results = search_collections(
            library, searched_names, query, models, load_settings(), limit,
            skips_unusable=not names and len(searched_names) > 1,
        )  # fmt: skip
    if as_json:
        used_names = [info.name for info in infos]
        echo_json({"query": query, "collections": used_names, "results": [make_result_object(r) for r in results]})
        return
    if not results:
        n_documents = sum(info.n_documents for info in infos)
        echo_note(f"edgechat: Nothing found in {format_count(n_documents, 'document')}.")
    n_columns = shutil.get_terminal_size().columns
    for result in results:
        prefix = f"{result.collection}: " if len(searched_names) > 1 else ""
        heading = f" ({result.chunk.heading})" if result.chunk.heading else ""
        click.echo(escape_controls(shorten(f"{prefix}{format_place(result)}{heading}", n_columns)))
        excerpt = make_excerpt(result.chunk.text, query, max(_MIN_EXCERPT_CHARS, 2 * n_columns - 8))
        click.echo(escape_controls(f"{_INDENT}{excerpt}"))


def _remove_sources(
    library: DocumentLibrary, name: str, sources: Sequence[Path], *, needs_confirmation: bool
) -> CollectionInfo:
    """Remove folders and files from a collection; return its description. Raises DocumentError and DeclinedError."""
    with library.open(name) as collection:
        existing_paths = [path for _, path in collection.sources()]
        removed_paths = [Path(os.path.abspath(source)) for source in sources]  # noqa: PTH100  (keeps symbolic links)
        unknown_path = next((path for path in removed_paths if path not in existing_paths), None)
        if unknown_path is not None:
            raise DocumentError(
                f"{unknown_path} was not added to the collection {name}. It has: {_join_paths(existing_paths)}."
            )
        if set(existing_paths) == set(removed_paths):
            raise DocumentError(
                f"The collection {name} has no other folder or file. To remove all of it: "
                f"edgechat docs remove {_quote(name)}"
            )
        if needs_confirmation:
            lines = "\n".join(f"  {escape_line(str(path))}" for path in removed_paths)
            confirm_deletion(f"{lines}\nRemove from the collection {name}? The files stay.", err=True)
        for path in removed_paths:
            collection.remove_source(path)
        return collection.describe()


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
    """Update a collection with progress on standard error; create it if sources are added. Raises DocumentError.

    Computes embeddings if `models` is not None and has an embedding model.
    """
    from edgechat.documents import indexing

    def run(collection: Collection) -> tuple[UpdateSummary, CollectionInfo]:
        with _show_progress(name) as status:
            embedder = models.open_embedder(load_settings(), status.show) if models is not None else None
            summary = indexing.update(
                collection, add=add, embedder=embedder,
                on_progress=lambda progress: status.show(f"{name}: {progress.message}"),
            )  # fmt: skip
        if models is not None and models.problem:
            echo_note(f"edgechat: No embeddings were computed, because {escape_controls(models.problem)}")
        for warning in summary.warnings:
            echo_note(f"edgechat: {escape_line(warning)}")
        return summary, collection.describe()

    return library.update(name, run, can_create=bool(add))


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


def _join_paths(sources: Sequence[Path]) -> str:
    return ", ".join(str(source) for source in sources)


def _quote(name: str) -> str:
    import shlex

    return shlex.quote(name)
