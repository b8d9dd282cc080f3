"""Embedding models and rerankers for documents: their interfaces, and installed models in engine processes."""

from __future__ import annotations

import contextlib
import queue
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from edgechat import paths
from edgechat.documents.embedding_prompts import VERSION, find_prompts
from edgechat.errors import (
    CatalogueError,
    ComputeError,
    ContextOverflowError,
    DocumentError,
    EdgechatError,
    EngineDiedError,
)

if TYPE_CHECKING:
    from edgechat.catalogue.library import InstalledModel
    from edgechat.config import Settings
    from edgechat.engine import protocol
    from edgechat.models.loaded_model import LoadedModel

# Context of the engine. Chunks have at most 2,000 characters, usually 300 tokens; longer texts are cut.
_N_CTX: Final = 1024
# Maximum length of a text that is tokenised.
_MAX_CHARS: Final = 16_384
# Models with more parameters take several times longer than a chunk is worth on a CPU; they are used if no others are
# installed.
_MAX_FAST_PARAMS: Final = 350_000_000
# Maximum length of a query and of a text for a reranker. It is halved, down to the minimum, if a pair is too long.
_MAX_PAIR_CHARS: Final = 4096
_MIN_PAIR_CHARS: Final = 64

_ResultT = TypeVar("_ResultT")
_EventT = TypeVar("_EventT", bound="protocol.Event")


class TextEmbedder(Protocol):
    """Embedding model that is ready for use."""

    @property
    def model_name(self) -> str:
        """Name for the user."""

    @property
    def model_id(self) -> str:
        """Identity of the model file and of the form of its input. Embeddings of another id are not comparable."""

    @property
    def n_embd(self) -> int:
        """Number of values of an embedding."""

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        """Return the embeddings of texts, each with a Euclidean norm of 1. Raises EdgechatError."""


class TextReranker(Protocol):
    """Reranker that is ready for use."""

    @property
    def name(self) -> str:
        """Name for the user."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return how relevant each text is to the query; higher is better. Raises EdgechatError."""


class EngineEmbedder:
    """Embedding model in an engine process that clients share. `close` leaves the engine."""

    def __init__(self, entry: InstalledModel, model: LoadedModel) -> None:
        """Use a loaded model. Computes one embedding to find out their length. Raises EdgechatError."""
        self.model_name = entry.name
        self.model_id = make_model_id(entry)
        self._model = model
        self._prompts = find_prompts(entry.facts.name, entry.path.name)
        properties = _get_properties(model)
        self._n_ctx = properties.n_ctx
        self._empty_text = model.engine.tokenize("")
        self.n_embd = 0
        self.n_embd = len(self.embed(["a"], is_query=False)[0])

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        """Return the embeddings of texts, with the prefix of queries or of documents.

        Texts that are longer than the context, which has 512 tokens in models like BERT, are cut at the end.
        """
        prefix = self._prompts.query if is_query else self._prompts.document
        return _retry(self._model, lambda: self._embed([f"{prefix}{text}"[:_MAX_CHARS] for text in texts]))

    def _embed(self, texts: Sequence[str]) -> list[array[float]]:
        from edgechat.engine import protocol

        engine = self._model.engine
        inputs = [truncate_tokens(engine.tokenize(text), self._n_ctx, self._empty_text) for text in texts]
        request = protocol.Embed(id=engine.next_id(), inputs=[tokens for tokens in inputs if tokens])
        embeddings = iter(_submit(self._model, request, protocol.EmbeddingsComputed).embeddings)
        # Some tokenisers return no tokens for an empty text, which is similar to nothing.
        return [array("f", next(embeddings) if tokens else [0.0] * self.n_embd) for tokens in inputs]

    def close(self) -> None:
        """Leave the engine, which stays for other clients and for `keep_alive` seconds."""
        self._model.close()


class EngineReranker:
    """Reranker in an engine process that clients share. `close` leaves the engine."""

    def __init__(self, entry: InstalledModel, model: LoadedModel) -> None:
        """Use a loaded model."""
        self.name = entry.name
        self._model = model

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return the first output of the model for the query and each text; texts that are too long are cut."""
        max_chars = _MAX_PAIR_CHARS
        while True:
            cut_query, documents = query[:max_chars], [text[:max_chars] for text in texts]
            try:
                return _retry(self._model, lambda: self._score(cut_query, documents))  # noqa: B023  (called at once)
            except ContextOverflowError:
                if max_chars <= _MIN_PAIR_CHARS:
                    raise
            max_chars //= 2

    def _score(self, query: str, documents: list[str]) -> list[float]:
        from edgechat.engine import protocol

        request = protocol.Rerank(id=self._model.engine.next_id(), query=query, documents=documents)
        return _submit(self._model, request, protocol.Reranked).scores

    def close(self) -> None:
        """Leave the engine, which stays for other clients and for `keep_alive` seconds."""
        self._model.close()


def open_embedder(
    settings: Settings, on_status: Callable[[str], None], entry: InstalledModel | None = None
) -> EngineEmbedder | None:
    """Load the installed embedding model `entry`, or a chosen one without it; return None if none is installed.

    `on_status` receives status messages while the model loads. Raises EdgechatError.
    """
    entry = entry or choose_embedding_model()
    return None if entry is None else _open(entry, settings, on_status, EngineEmbedder)


def open_reranker(
    settings: Settings, on_status: Callable[[str], None], entry: InstalledModel | None = None
) -> EngineReranker | None:
    """Load the installed reranker `entry`, or a chosen one without it; return None if none is installed.

    Raises EdgechatError.
    """
    entry = entry or choose_reranker()
    return None if entry is None else _open(entry, settings, on_status, EngineReranker)


def choose_embedding_model() -> InstalledModel | None:
    """Return the installed embedding model with which most chunks are embedded; without any, a fast one.

    A second embedding model therefore does not replace the one in use. Returns None if none is installed.
    """
    entries = _list_models("embedding")
    n_embedded = _count_embedded() if len(entries) > 1 else {}
    used = [entry for entry in entries if make_model_id(entry) in n_embedded]
    if used:
        return max(used, key=lambda entry: (n_embedded[make_model_id(entry)], entry.name))
    return _choose_fast(entries)


def choose_reranker() -> InstalledModel | None:
    """Return an installed reranker, if possible a fast one; None if none is installed."""
    return _choose_fast(_list_models("reranking"))


def make_model_id(entry: InstalledModel) -> str:
    """Return the id of the embeddings of a model: the name and size of its file, and the version of the prefixes."""
    return f"{entry.path.name} {entry.facts.size_bytes} {VERSION}"


def truncate_tokens(tokens: list[int], n_ctx: int, empty_text: Sequence[int]) -> list[int]:
    """Return at most `n_ctx` tokens of a text, with its end token.

    `empty_text` has the tokens of an empty text, which are the start and end tokens that the tokeniser adds.
    """
    if len(tokens) <= n_ctx:
        return tokens
    has_end = bool(empty_text) and tokens[-1] == empty_text[-1]
    return [*tokens[: n_ctx - 1], tokens[-1]] if has_end else tokens[:n_ctx]


def _list_models(purpose: str) -> list[InstalledModel]:
    from edgechat.catalogue import library

    try:
        return [entry for entry in library.scan() if entry.is_usable and entry.facts.purpose == purpose]
    except CatalogueError:  # `edgechat models` reports the damaged registry
        return []


def _choose_fast(entries: Sequence[InstalledModel]) -> InstalledModel | None:
    """Return the largest model that is fast on a CPU, or else the smallest model."""
    fast = [entry for entry in entries if entry.facts.n_params <= _MAX_FAST_PARAMS]
    if fast:
        return max(fast, key=lambda entry: (entry.facts.n_params, entry.name))
    return min(entries, key=lambda entry: (entry.facts.n_params, entry.name), default=None)


def _count_embedded() -> dict[str, int]:
    """Return the number of embedded chunks of all collections by model id."""
    from edgechat.documents.library import DocumentLibrary
    from edgechat.documents.vectors import read_model

    counts: dict[str, int] = {}
    library = DocumentLibrary(paths.documents_dir())
    for name in library.names():
        with (
            contextlib.suppress(DocumentError),  # a damaged collection is reported where it is used
            library.open(name) as collection,
            collection.database.read() as db,
        ):
            model_id = read_model(db).id
            counts[model_id] = counts.get(model_id, 0) + collection.describe().n_embedded
    return counts


_ModelT = TypeVar("_ModelT", EngineEmbedder, EngineReranker)


def _open(
    entry: InstalledModel,
    settings: Settings,
    on_status: Callable[[str], None],
    make: Callable[[InstalledModel, LoadedModel], _ModelT],
) -> _ModelT:
    from edgechat.models.loaded_model import LoadedModel
    from edgechat.prompt.renderer import Renderer

    class UnusedRenderer(Renderer):
        """Renderer without a process, because embedding models have no prompts."""

        def prepare(self, template: str | None) -> None:
            pass

    model = LoadedModel("documents", UnusedRenderer())
    n_ctx = min(_N_CTX, entry.facts.n_ctx_train or _N_CTX)
    try:
        model.open(
            entry.path, msgspec.structs.replace(settings, n_ctx=n_ctx), lambda event: on_status(event.message),
            allow_embedding=True,
        )  # fmt: skip
        return make(entry, model)
    except BaseException:
        model.close()
        raise


def _get_properties(model: LoadedModel) -> protocol.Loaded:
    if model.model_properties is None:
        raise DocumentError("The embedding model is not loaded. Try again.")
    return model.model_properties


def _retry(model: LoadedModel, compute: Callable[[], _ResultT]) -> _ResultT:
    """Call `compute`, once more if the engine has ended, for example because memory was short, or if the GPU failed."""
    model.restart_if_dead()
    plan = model.plan  # another thread can replace it after a failure
    try:
        return compute()
    except (ComputeError, EngineDiedError) as error:
        if not model.fall_back_to_cpu(error, plan) and not isinstance(error, EngineDiedError):
            raise
    model.restart_if_dead()
    return compute()


def _submit(model: LoadedModel, request: protocol.Request, result_type: type[_EventT]) -> _EventT:
    """Send a request to the engine and wait for its result. Raises the error that the engine reports."""
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
    model.engine.submit(request, outcomes.put)
    while True:
        outcome = outcomes.get()
        if isinstance(outcome, EdgechatError):
            raise outcome
        if isinstance(outcome, result_type):
            return outcome
