"""The search of the command palette."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.tui.palette_entries import (
    MAX_MATCHES_PER_KIND,
    PaletteEntry,
    PaletteIndex,
    index_entries,
    split_words,
)
from edgechat.tui.palette_sources import list_commands, list_settings, list_themes
from tests.step_count import takes_linear_time

ENTRIES = [
    PaletteEntry("command", "open", "Open", "Open a conversation, or list all", "Ctrl+B", "history conversations"),
    PaletteEntry("conversation", "1", "Merge sort in Python", "Today 14:05"),
    PaletteEntry("conversation", "2", "Crème brûlée"),
    PaletteEntry("conversation", "3", "日本料理のレシピ"),
    PaletteEntry("theme", "textual-dark", "textual-dark"),
    PaletteEntry("model", "qwen3.5-2b:Q8_0", "qwen3.5-2b:Q8_0", "2 GB"),
    PaletteEntry("setting", "n_ctx", "n_ctx", "Context length in tokens"),
]


def find(query: str, recent: list[str] | None = None, entries: list[PaletteEntry] = ENTRIES) -> list[str]:
    index = PaletteIndex()
    index.add(index_entries(entries))
    return [entry.id for entry in index.find(query, recent or [])]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("conversations", ["open"]),
        ("dark", ["textual-dark"]),
        ("theme dark", ["textual-dark"]),
        ("dark theme", ["textual-dark"]),
        ("sort merge", ["1"]),
        ("so mer", ["1"]),
        ("PYTHON", ["1"]),
        ("creme brulee", ["2"]),
        ("crème", ["2"]),
        ("料理", ["3"]),
        ("qwen3.5 q8", ["qwen3.5-2b:Q8_0"]),
        ("ctx", ["n_ctx"]),
        ("length context", ["n_ctx"]),
        ("history", ["open"]),
        ("erge", ["1"]),
        ("er", []),
        ("merge trees", []),
        ("...", [entry.id for entry in ENTRIES]),
    ],
)
def test_words_find_entries_in_any_order(query: str, ids: list[str]) -> None:
    assert find(query) == ids


def test_recent_choices_come_first() -> None:
    assert find("", ["theme:textual-dark", "conversation:2"])[:2] == ["textual-dark", "2"]
    assert find("conversation", ["conversation:3", "conversation:gone"])[0] == "3"
    assert find("conversation")[0] == "open"


def test_matches_in_titles_come_before_matches_in_descriptions() -> None:
    entries = [PaletteEntry("setting", "a", "figures", "speed"), PaletteEntry("setting", "b", "speed")]
    assert find("speed", entries=entries) == ["b", "a"]


def test_whole_words_come_before_beginnings() -> None:
    entries = [PaletteEntry("conversation", "a", "topic 421"), PaletteEntry("conversation", "b", "topic 42")]
    assert find("topic 42", entries=entries) == ["b", "a"]


def test_one_kind_does_not_hide_the_others() -> None:
    entries = [*(PaletteEntry("conversation", str(n), f"theme {n}") for n in range(500)), *ENTRIES]
    ids = find("theme", entries=entries)
    assert len(ids) == MAX_MATCHES_PER_KIND + 1
    assert ids[-1] == "textual-dark"
    assert find("theme", ["conversation:400"], entries)[0] == "400"


@pytest.mark.parametrize("query", ["", "t", "topic 42", "nothing like this"])
def test_search_takes_linear_time(query: str) -> None:
    def prepare(n_entries: int) -> Callable[[], object]:
        index = PaletteIndex()
        titles = [f"Talk {n} about topic {n % 97}" for n in range(n_entries)]
        index.add(index_entries(PaletteEntry("conversation", str(n), title) for n, title in enumerate(titles)))
        return lambda: index.find(query, ["conversation:99"])

    assert takes_linear_time(prepare)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_query_and_title_are_accepted(query: str, title: str) -> None:
    assert set(find(query, entries=[PaletteEntry("conversation", "x", title)])) <= {"x"}


@given(st.text(max_size=30))
def test_a_title_finds_itself(title: str) -> None:
    assert find(title, entries=[PaletteEntry("conversation", "x", title)]) == ["x"]


def test_split_words() -> None:
    assert split_words("textual-dark, n_ctx Ü") == " textual dark n ctx u "


def test_commands_and_settings_are_found_by_what_people_want() -> None:
    entries = [*list_commands({"new": "Ctrl+N"}), *list_settings(), *list_themes("nord")]
    assert entries[0].id == "new"
    assert entries[0].key == "Ctrl+N"
    assert find("regenerate", entries=entries)[0] == "retry"
    assert find("quit", entries=entries)[0] == "quit"
    assert "temperature" in find("temperature", entries=entries)
    assert find("nord", entries=entries) == ["nord"]
