"""Find tables in Markdown, and complete tables that are still being generated or are split into several blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_RULE: Final = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
"""Row of hyphens and bars below the heading of a table."""
_RULE_START: Final = re.compile(r"[ \t]*[|:-][ \t|:-]*")
_MIN_RULE_CHARS: Final = 2
"""Minimum length of a row of hyphens below a heading without a leading bar; a single hyphen starts a list item."""


def has_table(lines: Sequence[str]) -> bool:
    """Return whether lines of one Markdown block contain a table."""
    return _find_rule(lines) is not None


def find_table_heading(lines: Sequence[str]) -> list[str]:
    """Return the heading and the row of hyphens of the table at the end of `lines`; an empty list if there is none."""
    number = _find_rule(lines)
    if number is None or not all("|" in line for line in lines[number + 1 :]):
        return []
    return list(lines[number - 1 : number + 1])


def _find_rule(lines: Sequence[str]) -> int | None:
    """Return the index in `lines` of the row of hyphens of the first table, or None."""
    return next((i for i in range(1, len(lines)) if _is_rule(lines[i]) and "|" in lines[i - 1]), None)


def _is_rule(line: str) -> bool:
    return "|" in line and _RULE.fullmatch(line) is not None


def complete_table(lines: list[str]) -> list[str]:
    """Complete the row of hyphens if growing Markdown ends with the heading of a table, so that it renders as a table.

    The last line may be incomplete. A line that starts with a bar counts as a heading until the next line turns out
    not to be a row of hyphens. Other lines are returned unchanged.
    """
    if not lines or "|" not in "".join(lines[-2:]) or has_table(lines[:-1]):
        return lines
    heading, last = (lines[-2] if len(lines) > 1 else ""), lines[-1]
    is_below_heading = _is_heading(heading) or ("|" in heading and "-" in last and len(last) >= _MIN_RULE_CHARS)
    if is_below_heading and _RULE_START.fullmatch(last):
        n_columns = _count_columns(heading)
        if _is_rule(last) and _count_columns(last) == n_columns:
            return lines
        return [*lines[:-1], _make_rule(n_columns)]
    if _is_heading(last) and not _RULE_START.fullmatch(last):
        return [*lines, _make_rule(_count_columns(last))]
    return lines


def _is_heading(line: str) -> bool:
    return line.lstrip(" \t").startswith("|")


def _count_columns(line: str) -> int:
    from edgechat.markdown import Formulas, split_row

    return len(split_row(Formulas(line).text))


def _make_rule(n_columns: int) -> str:
    return f"|{'---|' * n_columns}"
