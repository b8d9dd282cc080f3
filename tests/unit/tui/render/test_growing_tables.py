"""Tables are laid out from their heading on, while the reply is generated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.tui.render.growing_tables import complete_table, find_table_heading
from tests.unit.tui.layouts import make_entry, rendered_rows

TABLE = "| Name | Size |\n|------|-----:|\n| one | 1 |\n| **two** | `2-3` |\n"


def grow(text: str, width: int = 40) -> list[str]:
    entry = make_entry("", finish_reason="streaming")
    entry.start_streaming()
    entry.append(text, "")
    return [row.rstrip() for row in rendered_rows(entry, width)]


def test_table_is_laid_out_from_its_first_cell_on() -> None:
    start = TABLE.index("| one")
    for end in range(len("| Na"), len(TABLE)):
        rows = grow(TABLE[:end])
        assert set(rows[1].strip()) == {"\u2500"}, rows
        assert not any("|" in row for row in rows), rows
        if end > start:
            assert rows[0].split() == ["Name", "Size"]


@pytest.mark.parametrize(
    "text",
    ["a | b", "a | b\n-", "| a\ntext", "x\n| a |\ntext", "| a | b |\n- item", "|", "||", "|-", "a\n|---|", "$|x|$"],
)
def test_other_lines_with_bars_are_text(text: str) -> None:
    assert complete_table(text.split("\n")) == text.split("\n")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("| a", "|---|"), ("| a | b |", "|---|---|"), ("| a | b |\n|", "|---|---|"), ("| a | b |\n|--", "|---|---|"),
        ("a | b\n--", "|---|---|"), ("words\n| a | `b|c` | d", "|---|---|---|"), ("| a | b |\n| :-: |", "|---|---|"),
    ],
)  # fmt: skip
def test_missing_row_of_hyphens_is_added(text: str, rule: str) -> None:
    assert complete_table(text.split("\n"))[-1] == rule


def test_line_that_is_no_heading_becomes_text_again() -> None:
    assert grow("|x| is a") != ["|x| is a"]
    assert grow("|x| is a value\nand more") == ["|x| is a value", "and more"]
    assert grow("|x| is a value\n\n") == ["|x| is a value"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=60), st.integers(8, 60))
def test_table_ends_as_if_it_had_come_at_once(sizes: list[int], width: int) -> None:
    text = f"Words\n\n{TABLE}\nmore\n{TABLE}"
    entry = make_entry("")
    entry.start_streaming()
    position = 0
    for size in [*sizes, len(text)]:
        entry.append(text[position : position + size], "")
        position += size
        rendered_rows(entry, width)
    entry.finish(make_entry(text).message)
    assert rendered_rows(entry, width) == rendered_rows(make_entry(text), width)


def test_complete_rows_stay_where_they_are_while_the_next_one_grows() -> None:
    head = "| Name | Words |\n|---|---|\n" + "".join(f"| name {i} | some words |\n" for i in range(10))
    before = grow(head)
    for end in range(1, len("| name x | word |\n")):
        assert grow(head + "| name x | word |\n"[:end])[: len(before)] == before


def test_every_part_of_a_long_table_has_the_heading() -> None:
    text = "| Name | Words |\n|---|---|\n" + "".join(f"| name {i} | {'some words ' * 6} |\n" for i in range(200))
    rows = [row.rstrip() for row in rendered_rows(make_entry(text), 100)]
    assert not any("|" in row for row in rows)
    assert sum(row.split() == ["Name", "Words"] for row in rows) > 2
    assert [row.split()[1] for row in rows if "name " in row] == [str(i) for i in range(200)]


def test_heading_of_a_table_that_has_ended_is_not_repeated() -> None:
    assert find_table_heading(["| a | b |", "|-|-|", "| 1 | 2 |"]) == ["| a | b |", "|-|-|"]
    assert find_table_heading(["| a | b |", "|-|-|", "| 1 | 2 |", "text"]) == []
    assert find_table_heading(["text", "more"]) == []
