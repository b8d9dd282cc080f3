from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.excerpts import make_excerpt

FILLER = "nothing of interest happens here "


def test_excerpt_is_the_text_around_the_matches() -> None:
    text = f"{FILLER * 20}the Vasa sank in 1628 near Stockholm. {FILLER * 20}"
    excerpt = make_excerpt(text, "when did the Vasa sink", 80)
    assert "Vasa sank in 1628" in excerpt
    assert excerpt.startswith("…")
    assert excerpt.endswith("…")
    assert set(excerpt.strip("…").split()) <= set(text.split())
    assert 60 <= len(excerpt) <= 80


def test_part_with_most_different_words_is_chosen() -> None:
    text = f"ship ship ship {FILLER * 10}a ship of oak {FILLER * 10}"
    assert "a ship of oak" in make_excerpt(text, "ship oak", 60)


def test_other_forms_and_other_scripts_are_found() -> None:
    assert "walruses" in make_excerpt(f"{FILLER * 9}two walruses swim {FILLER * 9}", "walrus", 50)
    assert "東京" in make_excerpt(f"{'あ' * 200}東京駅{'い' * 200}", "東京駅", 40)


def test_text_without_a_match_is_shown_from_its_beginning() -> None:
    excerpt = make_excerpt(f"first {FILLER * 9}", "walrus", 40)
    assert excerpt.startswith("first nothing")
    assert excerpt.endswith("…")
    assert make_excerpt("short\n  text", "walrus", 40) == "short text"


@given(st.text(), st.text(max_size=30), st.integers(3, 60))
@pytest.mark.filterwarnings("error")
def test_excerpt_is_never_too_long(text: str, query: str, max_chars: int) -> None:
    excerpt = make_excerpt(text, query, max_chars)
    assert len(excerpt) <= max_chars
    assert excerpt.strip("…") in " ".join(text.split())
