"""Benchmark of search in documents: recall of each search method, speed and memory of indexing, replies of a model.

The documents are a synthetic corpus, or a folder of the user. They are indexed in a temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.bench.child_programs import open_temporary_home
from edgechat.bench.documents_answers import measure_answers
from edgechat.bench.documents_corpus import GeneratedCorpus, Question, make_corpus
from edgechat.bench.documents_first_token import measure_first_tokens
from edgechat.bench.documents_folder import SourceChunk, make_folder_questions
from edgechat.bench.documents_metrics import CUTOFFS, MethodScores, Rank, find_rank, summarize_method
from edgechat.bench.documents_report import DocumentsReport, IndexSpeed
from edgechat.catalogue import library
from edgechat.catalogue.library import InstalledModel
from edgechat.config import Settings
from edgechat.documents import indexing
from edgechat.documents.collection import Collection
from edgechat.documents.embedding import TextEmbedder, TextReranker, open_embedder, open_reranker
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.search import FoundChunk, search
from edgechat.errors import UsageError
from edgechat.hardware.memory import read_tree_pss_bytes
from edgechat.humanize import format_size

ProgressCallback = Callable[[str], None]

COLLECTION: Final = "bench"
# Number of fused results that contain the best results of each part of the search: a chunk among the first 10 of one
# part is among the first 100 or so of the fused results.
_N_FUSED: Final = 200
_MEMORY_INTERVAL_S: Final = 0.25


class DocumentsWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Documents and questions of a measurement."""

    folder: Path | None = None
    """Folder with documents; None for the synthetic corpus."""
    n_documents: int = 240
    n_questions: int = 400
    seed: int = 1
    embedder: Path | None = None
    """Embedding model; None to search by keywords alone."""
    reranker: Path | None = None
    model: Path | None = None
    """Chat model whose replies are measured."""
    n_answers: int = 50
    n_prompt_tokens: int = 3000
    """Length of the document for times to the first token."""


class SearchQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A query with the keys of the chunks that count as right."""

    text: str
    kind: str
    keys: frozenset[str]


class MemoryMonitor:
    """Measures the largest memory of this process and its children in a thread."""

    def __init__(self) -> None:
        self._peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-monitor", daemon=True)

    def __enter__(self) -> MemoryMonitor:  # noqa: PYI034  (typing.Self needs Python 3.11)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def take_peak(self) -> int:
        """Return the peak since the last call in bytes."""
        self._measure()
        peak_bytes, self._peak_bytes = self._peak_bytes, 0
        return peak_bytes

    def _run(self) -> None:
        while not self._is_over.wait(_MEMORY_INTERVAL_S):
            self._measure()

    def _measure(self) -> None:
        self._peak_bytes = max(self._peak_bytes, read_tree_pss_bytes(os.getpid()))


def run(workload: DocumentsWorkload, on_progress: ProgressCallback = lambda text: None) -> DocumentsReport:
    """Index the documents, search for all questions with each method, and measure replies if there is a chat model.

    All files are in a temporary directory. Raises EdgechatError.
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(open_temporary_home())
        memory = stack.enter_context(MemoryMonitor())
        embedder, reranker = None, None
        if workload.embedder is not None:
            entry = _install(workload.embedder, "embedding")
            embedder = open_embedder(Settings(), on_progress, entry)
        if workload.reranker is not None:
            entry = _install(workload.reranker, "reranking")
            reranker = open_reranker(Settings(), on_progress, entry)
        for model in (embedder, reranker):
            if model is not None:
                stack.callback(model.close)
        return measure(workload, home, embedder, reranker, memory, on_progress)


def _install(path: Path, purpose: str) -> InstalledModel:
    """Return a model file as an installed model. Raises UsageError if it is not for the purpose."""
    library.add_file(path)
    entry = library.find_by_path(path.absolute())
    if entry is None or not entry.is_usable or entry.facts.purpose != purpose:
        noun = "embedding model" if purpose == "embedding" else "reranker"
        raise UsageError(f"{path} is not a usable {noun}. `edgechat models list` shows the purposes of models.")
    return entry


def measure(
    workload: DocumentsWorkload, home: Path, embedder: TextEmbedder | None, reranker: TextReranker | None,
    memory: MemoryMonitor, on_progress: ProgressCallback,
) -> DocumentsReport:  # fmt: skip
    """Run the measurements with these models, and with the files of edgechat in `home`. Raises EdgechatError."""
    document_library = DocumentLibrary(paths.documents_dir())
    corpus = None
    folder = workload.folder
    if folder is None:
        corpus = make_corpus(n_documents=workload.n_documents, n_questions=workload.n_questions, seed=workload.seed)
        folder = home / "corpus"
        corpus.write(folder)
    with document_library.create(COLLECTION) as collection:
        report = _measure_search(workload, collection, folder, corpus, embedder, reranker, memory, on_progress)
    if workload.model is None or corpus is None:
        return report
    answers = measure_answers(workload.model, COLLECTION, corpus.questions[: workload.n_answers], on_progress)
    first_tokens = measure_first_tokens(
        workload.model, document_library, home, n_tokens=workload.n_prompt_tokens, seed=workload.seed,
        on_progress=on_progress,
    )  # fmt: skip
    return msgspec.structs.replace(report, answers=answers, first_tokens=first_tokens)


def _measure_search(
    workload: DocumentsWorkload, collection: Collection, folder: Path, corpus: GeneratedCorpus | None,
    embedder: TextEmbedder | None, reranker: TextReranker | None, memory: MemoryMonitor, on_progress: ProgressCallback,
) -> DocumentsReport:  # fmt: skip
    index = _index(collection, folder, memory, on_progress)
    info = collection.describe()
    if not info.n_chunks:
        raise UsageError(f"{folder} has no documents with text. Name another folder.")
    embeddings = _embed(collection, embedder, memory, on_progress) if embedder is not None else None
    questions = make_questions(collection, corpus, workload)
    methods = measure_methods(collection, questions, embedder, reranker, on_progress)
    return DocumentsReport(
        source=str(workload.folder or ""), seed=workload.seed, n_documents=info.n_documents,
        n_failed=len(info.problems), n_bytes=info.n_bytes, n_chunks=info.n_chunks, n_questions=len(questions),
        n_split=sum(not question.keys for question in questions),
        embedding_model=embedder.model_name if embedder is not None else "",
        reranker=reranker.name if reranker is not None else "", index=index, embeddings=embeddings, methods=methods,
        search_peak_bytes=memory.take_peak(),
    )  # fmt: skip


def _index(collection: Collection, folder: Path, memory: MemoryMonitor, on_progress: ProgressCallback) -> IndexSpeed:
    started_at = time.monotonic()
    indexing.update(collection, add=[folder], on_progress=lambda p: on_progress(_describe_progress(p)))
    elapsed_s = time.monotonic() - started_at
    info = collection.describe()
    return IndexSpeed(elapsed_s=elapsed_s, n_bytes=info.n_bytes, n_chunks=info.n_chunks, peak_bytes=memory.take_peak())


def _embed(
    collection: Collection, embedder: TextEmbedder, memory: MemoryMonitor, on_progress: ProgressCallback
) -> IndexSpeed:
    started_at = time.monotonic()
    indexing.update(collection, embedder=embedder, on_progress=lambda p: on_progress(_describe_progress(p)))
    elapsed_s = time.monotonic() - started_at
    info = collection.describe()
    return IndexSpeed(
        elapsed_s=elapsed_s, n_bytes=info.n_text_bytes, n_chunks=info.n_embedded, peak_bytes=memory.take_peak()
    )


def _describe_progress(progress: indexing.IndexProgress) -> str:
    if progress.phase == "embedding":
        return f"Computing embeddings: {progress.n_chunks_done} of {progress.n_chunks} chunks"
    return f"Reading files: {format_size(progress.n_bytes_done)} of {format_size(progress.n_bytes)}"


def make_questions(
    collection: Collection, corpus: GeneratedCorpus | None, workload: DocumentsWorkload
) -> list[SearchQuestion]:
    """Return the questions that have an answer, with the chunks that contain it.

    Without a corpus, questions are made from the chunks of the collection. Raises UsageError if that is impossible.
    """
    chunks = [
        SourceChunk(
            key=f"{stored.document_id}:{stored.ordinal}", document=stored.document, heading=stored.chunk.heading,
            text=stored.chunk.text,
        )
        for stored in collection.iterate_chunks()
    ]  # fmt: skip
    if corpus is None:
        folder_questions = make_folder_questions(chunks, workload.n_questions, workload.seed)
        if not folder_questions:
            raise UsageError("The documents have no sentences or headings for questions. Name another folder.")
        return [SearchQuestion(text=q.text, kind=q.wording, keys=q.keys) for q in folder_questions]
    by_document: dict[str, list[SourceChunk]] = defaultdict(list)
    for chunk in chunks:
        by_document[chunk.document.replace("\\", "/")].append(chunk)
    return [
        SearchQuestion(
            text=question.text, kind=f"{question.source} {question.wording}",
            keys=find_evidence(question, by_document[question.document]),
        )
        for question in corpus.questions
        if question.is_answerable
    ]  # fmt: skip


def find_evidence(question: Question, chunks: Sequence[SourceChunk]) -> frozenset[str]:
    """Return the keys of the chunks of a document that contain the evidence; line breaks and spaces do not matter."""
    evidence = [" ".join(text.split()) for text in question.evidence]
    return frozenset(
        chunk.key for chunk in chunks if all(text in " ".join(chunk.text.split()) for text in evidence)
    )  # fmt: skip


def measure_methods(
    collection: Collection,
    questions: Sequence[SearchQuestion],
    embedder: TextEmbedder | None,
    reranker: TextReranker | None,
    on_progress: ProgressCallback,
) -> list[MethodScores]:
    """Search for all questions with keywords, embeddings, both, and the reranker, as far as there are models."""
    names = ["keywords (BM25)"]
    if embedder is not None:
        names += ["embeddings", "hybrid"]
    if reranker is not None:
        names.append(f"{names[-1]} and reranker")
    ranks: dict[str, list[Rank]] = {name: [] for name in names}
    times_s: dict[str, list[float]] = {name: [] for name in names}

    def measure(name: str, question: SearchQuestion, **models: TextEmbedder | TextReranker | None) -> None:
        started_at = time.perf_counter()
        found = search([collection], question.text, n_results=max(CUTOFFS), **models)  # type: ignore[arg-type]
        times_s[name].append(time.perf_counter() - started_at)
        ranks[name].append(find_rank([_key(result) for result in found], question.keys))

    for i, question in enumerate(questions):
        on_progress(f"Searching: question {i + 1} of {len(questions)}")
        measure(names[0], question)
        if embedder is not None:
            measure("hybrid", question, embedder=embedder)
            found = search([collection], question.text, embedder=embedder, n_results=_N_FUSED)
            similar = sorted(
                (result for result in found if result.scores.similarity_rank is not None),
                key=lambda result: result.scores.similarity_rank or 0,
            )
            ranks["embeddings"].append(find_rank([_key(r) for r in similar[: max(CUTOFFS)]], question.keys))
        if reranker is not None:
            measure(names[-1], question, embedder=embedder, reranker=reranker)
    kinds = [question.kind for question in questions]
    return [
        summarize_method(
            name, ranks[name], kinds, 1000 * statistics.median(times) if (times := times_s[name]) else None
        )
        for name in names
    ]


def _key(result: FoundChunk) -> str:
    return f"{result.document_id}:{result.ordinal}"
