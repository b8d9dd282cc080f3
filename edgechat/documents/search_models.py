"""Embedding model and reranker of a program, loaded when a search or an update first needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from edgechat.documents.collection import CollectionInfo
from edgechat.documents.vector_scan import load_library
from edgechat.errors import EdgechatError

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.documents.embedding import EngineEmbedder, EngineReranker

NO_MODEL_HINT: Final = (
    "no embedding model is installed. `edgechat models search embedding` finds one, and `edgechat docs update` uses it"
)
"""Clause that says why a search is by keywords only."""
_NO_LIBRARY_REASON: Final = (
    "the native library libedgechat-vectors, which searches embeddings, is missing or cannot be loaded. Reinstall "
    "edgechat"
)


class SearchModels:
    """Loads the embedding model and the reranker once each. Call `close` at the end.

    A model that cannot be loaded is not tried again; `problem` has the reason, and the search uses keywords.
    """

    def __init__(self) -> None:
        self.problem = ""
        """Reason why a model cannot be loaded; "" if there is none."""
        self._embedder: EngineEmbedder | None = None
        self._reranker: EngineReranker | None = None
        self._opened: set[str] = set()

    def open_embedder(
        self, settings: Settings, on_status: Callable[[str], None] = lambda text: None
    ) -> EngineEmbedder | None:
        """Return the installed embedding model; None if there is none, or if it cannot be loaded."""
        if "embedder" not in self._opened:
            from edgechat.documents import embedding

            self._opened.add("embedder")
            if load_library() is None and embedding.choose_embedding_model() is not None:
                self.problem = _NO_LIBRARY_REASON
                return None
            try:
                self._embedder = embedding.open_embedder(settings, on_status)
            except EdgechatError as error:
                self.problem = f"the embedding model cannot be loaded: {error}"
        return self._embedder

    def open_reranker(
        self, settings: Settings, on_status: Callable[[str], None] = lambda text: None
    ) -> EngineReranker | None:
        """Return the installed reranker; None if there is none, or if it cannot be loaded."""
        if "reranker" not in self._opened:
            from edgechat.documents import embedding

            self._opened.add("reranker")
            try:
                self._reranker = embedding.open_reranker(settings, on_status)
            except EdgechatError as error:
                self.problem = self.problem or f"the reranker cannot be loaded: {error}"
        return self._reranker

    def close(self) -> None:
        """Leave the engines of the models. Later calls load nothing."""
        self._opened |= {"embedder", "reranker"}
        for model in (self._embedder, self._reranker):
            if model is not None:
                model.close()
        self._embedder = self._reranker = None

    def explain_keyword_search(self, infos: Iterable[CollectionInfo]) -> str:
        """Return a sentence that says why a search in the collections used only keywords."""
        from edgechat.documents import embedding

        if self.problem:
            reason = self.problem.rstrip(".")
        elif (entry := embedding.choose_embedding_model()) is None:
            reason = NO_MODEL_HINT
        elif load_library() is None:
            reason = _NO_LIBRARY_REASON
        else:
            names = ", ".join(info.name for info in infos)
            reason = f"{names} has no embeddings of {entry.name} yet. `edgechat docs update` computes them"
        return f"Only keywords were searched, because {reason}."
