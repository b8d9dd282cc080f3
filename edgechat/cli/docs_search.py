"""Search of several collections for `edgechat docs search`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from edgechat.cli.progress import echo_note
from edgechat.errors import DamagedCollectionError, DocumentError
from edgechat.humanize import format_count
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.documents.collection import Collection, CollectionInfo
    from edgechat.documents.library import DocumentLibrary
    from edgechat.documents.search import FoundChunk
    from edgechat.documents.search_models import SearchModels


def search_collections(
    library: DocumentLibrary, names: Sequence[str], query: str, models: SearchModels, settings: Settings,
    n_results: int, *, skips_unusable: bool,
) -> tuple[list[CollectionInfo], list[FoundChunk]]:  # fmt: skip
    """Return the descriptions of the collections that were searched, and the results, best first.

    With `skips_unusable`, collections that cannot be opened or are damaged are left out, with a note on standard error.
    Raises DocumentError, also if none of them is left.
    """
    from edgechat.documents import search

    collections: dict[str, Collection] = {}
    infos: dict[str, CollectionInfo] = {}
    with ExitStack() as stack:
        for name in names:
            with _print_errors() if skips_unusable else nullcontext():
                collection = stack.enter_context(library.open(name))
                infos[name] = collection.describe()
                collections[name] = collection
        while collections:
            embedder = models.open_embedder(settings) if any(info.n_embedded for info in infos.values()) else None
            try:
                results = search.search(
                    list(collections.values()), query, embedder=embedder, reranker=models.open_reranker(settings),
                    n_results=n_results,
                )  # fmt: skip
                return list(infos.values()), results
            except DamagedCollectionError as error:
                if not skips_unusable or error.collection not in collections:
                    raise
                _print_note(error)
                del collections[error.collection], infos[error.collection]
    raise DocumentError(f"None of {format_count(len(names), 'collection')} can be searched.")


@contextmanager
def _print_errors() -> Iterator[None]:
    """Context manager that prints a DocumentError on standard error instead of raising it."""
    try:
        yield
    except DocumentError as error:
        _print_note(error)


def _print_note(error: DocumentError) -> None:
    echo_note(f"edgechat: {escape_controls(str(error))}")
