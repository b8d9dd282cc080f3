"""Texts of the documents screen: rows of collections, their details, and the progress and result of updates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection as Container
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from edgechat.humanize import format_count, format_size
from edgechat.terminal import escape_controls, escape_line
from edgechat.tui.dates import format_date_and_time
from edgechat.tui.row_text import cut_to_columns

if TYPE_CHECKING:
    from edgechat.documents.collection import CollectionInfo
    from edgechat.documents.indexing import IndexProgress, UpdateSummary

# Maximum number of problems that are listed; the others are counted.
_MAX_PROBLEMS: Final = 100
_MAX_NAME_COLUMNS: Final = 30


def format_rows(infos: Sequence[CollectionInfo], used_names: Container[str], *, ascii_only: bool) -> list[Text]:
    """Return a row for each collection: a box, checked if the conversation uses it, the name, counts and size."""
    boxes = ("[ ]", "[x]") if ascii_only else ("☐", "☑")
    names = [cut_to_columns(_to_line(info.name), _MAX_NAME_COLUMNS) for info in infos]
    width = max(map(cell_len, names), default=0)
    rows = []
    for info, name in zip(infos, names, strict=True):
        row = Text(f"{boxes[info.name in used_names]} {name}{' ' * (width - cell_len(name))}  ", no_wrap=True)
        row.overflow = "ellipsis"
        row.append(_describe_size(info), "dim")
        rows.append(row)
    return rows


def describe_collection(info: CollectionInfo, today: dt.date) -> str:
    """Return the sources of a collection, how it is searched, when it was updated, and what could not be read."""
    lines = [f"From {source}" for source in info.sources]
    if info.n_chunks:
        is_embedded = info.n_embedded and info.embedding_model
        n_embedded = f"{info.n_embedded:,} of {format_count(info.n_chunks, 'passage')} with {info.embedding_model}"
        lines.append(f"Searched by keywords and meaning ({n_embedded})" if is_embedded else "Searched by keywords")
    if info.updated_at_ms:
        lines.append(f"Updated: {format_date_and_time(info.updated_at_ms, today)}")
    elif info.sources:
        lines.append("Not updated completely yet")
    for noun, problems in (("could not be read", info.problems), ("was read in part", info.notices)):
        if problems:
            verb = noun if len(problems) == 1 or noun.startswith("could") else "were read in part"
            lines += ["", f"{format_count(len(problems), 'file')} {verb}:"]
            lines += [f"  {problem.path}: {' '.join(problem.reason.split())}" for problem in problems[:_MAX_PROBLEMS]]
        if len(problems) > _MAX_PROBLEMS:
            lines.append(f"  and {len(problems) - _MAX_PROBLEMS:,} more")
    return "\n".join(map(escape_line, lines))


def describe_progress(name: str, progress: IndexProgress) -> str:
    """Return a line with the progress of an update."""
    if progress.phase == "finding":
        return f"{name}: finding files, {progress.n_files:,} so far"
    if progress.phase == "embedding":
        return f"{name}: embeddings, {progress.n_chunks_done:,} of {format_count(progress.n_chunks, 'passage')}"
    counts = f"{progress.n_files_done:,} of {format_count(progress.n_files, 'file')}"
    path = f", {_to_line(progress.path)}" if progress.path else ""
    return f"{name}: reading, {counts} ({format_size(progress.n_bytes_done)} of {format_size(progress.n_bytes)}){path}"


def describe_summary(name: str, summary: UpdateSummary) -> str:
    """Return a line with the result of an update."""
    changes = f"up to date: {summary.describe_changes()}"
    state = "cancelled; the next update continues" if summary.is_cancelled else changes
    return " ".join([f"{name}: {state}.", *summary.warnings])


def _describe_size(info: CollectionInfo) -> str:
    if info.is_damaged:
        return "needs an update"
    parts = [format_count(info.n_documents, "document"), format_count(info.n_chunks, "passage")]
    parts.append(format_size(info.n_bytes))
    if info.problems:
        parts.append(format_count(len(info.problems), "problem"))
    return ", ".join(parts)


def _to_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))
