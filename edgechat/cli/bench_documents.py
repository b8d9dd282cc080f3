"""`edgechat bench documents`: measure the search in documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgechat.cli.bench_options import count_option, json_option
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import IntRange
from edgechat.cli.progress import StderrStatus

if TYPE_CHECKING:
    from edgechat.catalogue.library import InstalledModel

_NO_MODEL: Final = "none"


@click.command()
@click.option(
    "-m", "--model", metavar="NAME", help="Chat model whose replies are measured; without it, only the search is."
)
@click.option(
    "--embedder", metavar="NAME", help="Embedding model, or none for keywords alone. Default: an installed model."
)
@click.option("--reranker", metavar="NAME", help="Reranker, or none. Default: an installed model.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Search in the documents of this folder instead of generated ones.",
)
@count_option("--documents", "n_documents", "Number of generated documents.", default=240, metavar="N")
@count_option("--questions", "n_questions", "Number of questions.", default=400, metavar="N")
@click.option(
    "--seed", type=IntRange(0), default=1, show_default=True, metavar="N", help="Seed of documents and questions."
)
@count_option("--answers", "n_answers", "Number of questions that the chat model answers.", default=50, metavar="N")
@count_option(
    "--prompt", "n_prompt", "Length of a document, in tokens, for times to the first token.", default=3000, metavar="N"
)
@click.option(
    "--passages", "n_passages", type=IntRange(1), metavar="N",
    help="Measure only the times of searches in N generated passages.",
)  # fmt: skip
@json_option
def documents(
    *, model: str | None, embedder: str | None, reranker: str | None, folder: Path | None, n_documents: int,
    n_questions: int, seed: int, n_answers: int, n_prompt: int, n_passages: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure how well and how fast documents are searched.

    Generates reports, source code and tables with planted facts, and questions in the words of the documents and in
    other words. For --folder, queries are made from the documents themselves: sentences without half of their words,
    such sentences with words replaced by others of the same meaning, and headings. The table has the share of queries
    with a right passage among the first 1, 5 and 10 results (recall), and the mean reciprocal rank (MRR).

    With a chat model, also measures how often its replies about the generated documents are correct, cite the right
    passage, or claim something that is in no document; and the time to the first token of questions about a document
    that is in the prompt as a whole, each in a new process.
    """
    from edgechat.bench.documents import DocumentsWorkload, run
    from edgechat.bench.documents_report import format_table
    from edgechat.catalogue.resolve import find_model
    from edgechat.documents.embedding import choose_embedding_model, choose_reranker
    from edgechat.errors import UsageError

    if n_passages is not None:
        _measure_scale(n_passages, seed, as_json=as_json)
        return
    if model is not None and folder is not None:
        raise UsageError("The answers to questions about a folder are not known. Use --model without --folder.")
    workload = DocumentsWorkload(
        embedder=_find_model(embedder, choose_embedding_model), reranker=_find_model(reranker, choose_reranker),
        folder=folder, n_documents=n_documents, n_questions=n_questions, seed=seed,
        model=find_model(model) if model is not None else None, n_answers=n_answers, n_prompt_tokens=n_prompt,
    )  # fmt: skip
    status = StderrStatus(print_lines=True)
    report = run(workload, status.show)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))


def _measure_scale(n_passages: int, seed: int, *, as_json: bool) -> None:
    import tempfile

    from edgechat.bench.documents_scale import format_scale, measure_search_times

    status = StderrStatus(print_lines=False)
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as root:
        scale = measure_search_times(Path(root), n_passages, seed, status.show)
    status.clear()
    echo_json(scale) if as_json else click.echo(format_scale(scale))


def _find_model(name: str | None, choose: Callable[[], InstalledModel | None]) -> Path | None:
    """Return the file of the model with a name, or of a chosen one without a name; None for the name "none"."""
    from edgechat.catalogue.resolve import find_model

    if name == _NO_MODEL:
        return None
    if name is not None:
        return find_model(name)
    entry = choose()
    return None if entry is None else entry.path
