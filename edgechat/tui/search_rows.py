"""Rows of the search screen: a heading for each conversation, and its hits with role and preview."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from textual.content import Content
from textual.widgets.option_list import Option

from edgechat.terminal import escape_controls
from edgechat.tui.dates import format_date_and_time
from edgechat.tui.row_text import cut_to_columns, find_markup, format_title_row

if TYPE_CHECKING:
    from edgechat.chat.store import SearchHit

_ROLE_COLUMNS: Final = 12
"""Width of the column with the role, with its margins."""
_ROLES: Final = {"user": "you", "": "title"}
_ID_CHARS: Final = 6


def list_hit_options(hits: Sequence[SearchHit], width: int, today: dt.date) -> Iterator[Option]:
    """Yield a heading for each conversation, and below it its hits. The ID of a hit's row is its index in `hits`.

    The conversation with the newest hit comes first. `width` is the width of a row in columns.
    """
    groups: dict[str, list[int]] = {}
    for index, hit in enumerate(hits):
        groups.setdefault(hit.conversation_id, []).append(index)
    first_hits = [hits[indexes[0]] for indexes in groups.values()]
    labels = [_label(hit, today) for hit in first_hits]
    for (conversation_id, indexes), label in zip(groups.items(), labels, strict=True):
        title, date = label
        if labels.count(label) > 1:
            date += f" ({escape_controls(conversation_id[:_ID_CHARS])})"
        n_columns = max(0, width - cell_len(date) - 2)
        yield Option(
            Content.assemble((cut_to_columns(title, n_columns), "bold $list-text"), f"  {date}"), disabled=True
        )
        for index in indexes:
            yield Option(format_hit(hits[index], width), id=str(index))


def _label(hit: SearchHit, today: dt.date) -> tuple[str, str]:
    return format_title_row(hit.title), format_date_and_time(hit.updated_at_ms, today)


def format_hit(hit: SearchHit, width: int) -> Content:
    """Return a row with the role and the part of the snippet around its first match that fits into `width` columns."""
    role = _ROLES.get(hit.role, hit.role)
    n_columns = max(1, width - _ROLE_COLUMNS)
    parts = _split_snippet(hit, one_line=True)
    match_columns = cell_len(parts[1][0]) if len(parts) > 1 else 0
    before, is_cut = parts[0][0], False
    # Show the whole first match, and the text before it in the remaining columns, but at most in a third of the row.
    while before and cell_len(before) > max(0, min(n_columns // 3, n_columns - match_columns - 1)):
        before, is_cut = before[1:], True
    before = f"…{before}" if is_cut else before
    row = [(before, ""), *((text, "bold underline" if is_match else "") for text, is_match in parts[1:])]
    return Content.assemble((f"  {role:<{_ROLE_COLUMNS - 2}}", "$list-quiet"), *row)


def format_preview(hit: SearchHit) -> Content:
    """Return the title, the role and the whole snippet of a hit."""
    title = format_title_row(hit.title)
    parts = ((text, "bold underline" if is_match else "") for text, is_match in _split_snippet(hit))
    return Content.assemble((f"{title}  ({_ROLES.get(hit.role, hit.role)})\n", "bold"), *parts)


def _split_snippet(hit: SearchHit, *, one_line: bool = False) -> list[tuple[str, bool]]:
    """Return the parts of the snippet, each with whether it matches the query; the first part does not match.

    Marks of Markdown are removed, unless the query matches them.
    """
    parts: list[tuple[str, bool]] = []
    position, markup = 0, list(find_markup(hit.snippet))
    for start, end in hit.marks:
        parts += [(_cut_out(hit.snippet, position, start, markup), False), (hit.snippet[start:end], True)]
        position = end
    parts.append((_cut_out(hit.snippet, position, len(hit.snippet), markup), False))
    escaped_parts = [(escape_controls(text), is_match) for text, is_match in parts]
    return [(" ".join(text.split("\n")), is_match) for text, is_match in escaped_parts] if one_line else escaped_parts


def _cut_out(text: str, start: int, end: int, ranges: Sequence[tuple[int, int]]) -> str:
    """Return `text[start:end]` without `ranges` of `text`."""
    parts = []
    for range_start, range_end in ranges:
        if start <= range_start and range_end <= end:
            parts.append(text[start:range_start])
            start = range_end
    return "".join([*parts, text[start:end]])
