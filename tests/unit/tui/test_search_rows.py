"""Rows of the search screen."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from rich.cells import cell_len

from edgechat.chat.store import SearchHit
from edgechat.tui.dates import format_date_and_time, format_short_date
from edgechat.tui.search_rows import format_hit, format_preview, list_hit_options

TODAY = dt.datetime(2026, 1, 15, 12, 5).astimezone()


def ms_ago(days: float) -> int:
    return int((TODAY - dt.timedelta(days=days)).timestamp() * 1000)


def make_hit(snippet: str, word: str = "zebra", **fields: Any) -> SearchHit:
    start = snippet.find(word)
    values: dict[str, Any] = {
        "conversation_id": "a" * 16, "title": "Animals", "message_id": "m", "role": "user", "created_at_ms": 0,
        "updated_at_ms": ms_ago(0), "score": 0.0,
    }  # fmt: skip
    return SearchHit(snippet=snippet, marks=[(start, start + len(word))] if start >= 0 else [], **(values | fields))


def row_texts(hits: list[SearchHit], width: int = 80) -> list[str]:
    return [str(option.prompt) for option in list_hit_options(hits, width, TODAY.date())]


def test_hits_are_grouped_under_their_conversation() -> None:
    hits = [
        make_hit("a zebra", role="assistant"),
        make_hit("zebra two", conversation_id="b" * 16, title="Zoo", updated_at_ms=ms_ago(1)),
        make_hit("which zebra?"),
        make_hit("zebra", role="", message_id=None, title="Zoo", conversation_id="b" * 16),
    ]
    assert row_texts(hits) == [
        "Animals  Today 12:05", "  assistant a zebra", "  you       which zebra?",
        "Zoo  Yesterday 12:05", "  you       zebra two", "  title     zebra",
    ]  # fmt: skip
    options = list(list_hit_options(hits, 80, TODAY.date()))
    assert [option.id for option in options] == [None, "0", "2", None, "1", "3"]
    assert [option.disabled for option in options] == [True, False, False, True, False, False]


def test_conversations_with_the_same_title_differ_by_date_or_id() -> None:
    hits = [
        make_hit("zebra", conversation_id="1" * 16),
        make_hit("zebra", conversation_id="2" * 16),
        make_hit("zebra", conversation_id="3" * 16, updated_at_ms=ms_ago(800)),
    ]
    headings = [row for row in row_texts(hits) if not row.startswith("  ")]
    assert headings[:2] == ["Animals  Today 12:05 (111111)", "Animals  Today 12:05 (222222)"]
    assert headings[2] == f"Animals  {format_date_and_time(ms_ago(800), TODAY.date())}"
    assert len(set(headings)) == 3


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("before", ["", "word " * 60, "料理の" * 60, "👨‍👩‍👧 " * 30, "e\u0301" * 90])
def test_first_match_is_visible_at_every_width(width: int, before: str) -> None:
    row = str(format_hit(make_hit(f"{before}zebra and more" + " text" * 60), width))
    visible_text = row[: row.index("zebra") + len("zebra")]
    assert cell_len(visible_text) <= width
    if before:
        assert len(visible_text) > len("  you       zebra") or width == 20


def test_long_titles_leave_room_for_the_date() -> None:
    [heading, _] = row_texts([make_hit("zebra", title="料理" * 100)], 40)
    assert heading.endswith("…  Today 12:05")
    assert cell_len(heading) <= 40


def test_control_characters_are_escaped() -> None:
    hit = make_hit("a \x1b[2J zebra\x07 end", title="\x1b]0;evil\x07")
    assert "\x1b" not in "".join(row_texts([hit]))
    assert "zebra" in row_texts([hit])[1]


def test_dates() -> None:
    today = TODAY.date()
    assert format_date_and_time(ms_ago(0), today) == "Today 12:05"
    assert format_date_and_time(ms_ago(800), today).endswith(f"{TODAY.year - 2} 12:05") or TODAY.month < 4
    assert format_date_and_time(0, today) == "unknown date"
    assert format_date_and_time(10**18, today) == "unknown date"
    assert format_short_date(10**18, today) == ""
    assert format_short_date(ms_ago(0), today) == "12:05"
    assert len(format_short_date(ms_ago(3), today)) == 3
    assert all(len(format_short_date(ms_ago(n), today)) <= 6 for n in range(400))


def test_marks_of_markdown_are_not_shown() -> None:
    hit = make_hit("# About\n**A zebra** has `stripes`\n```python\nzebra()\n```", title="**Animals** of `Africa`")
    assert row_texts([hit]) == ["Animals of Africa  Today 12:05", "  you       About A zebra has stripes zebra() "]
    assert str(format_preview(hit)).splitlines()[:3] == ["Animals of Africa  (you)", "About", "A zebra has stripes"]
    row = format_hit(hit, 80)
    assert [row.plain[span.start : span.end] for span in row.spans if "bold" in str(span.style)] == ["zebra"]
    assert str(format_preview(make_hit("zebra", title=""))).startswith("(no title)  (you)")
