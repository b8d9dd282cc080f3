"""Recognition of questions that are nearly the same: the labelled pairs, and hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.question_words import MAX_CHARS, parse_question
from edgechat.files import read_toml
from tests.hostile_texts import HOSTILE_TEXTS

PAIRS: Final[dict[str, Any]] = read_toml(Path(__file__).parents[2] / "fixtures" / "asked_before.toml")
# Numbers of pairs with the same meaning that are recognised; docs/decisions.md has them, too.
N_RECOGNISED: Final = {"calibration": 39, "check": 19}


def is_same(first: str, second: str) -> bool:
    return parse_question(first).is_same(parse_question(second))


@pytest.mark.parametrize("part", PAIRS)
def test_no_pair_with_another_meaning_is_the_same(part: str) -> None:
    assert [pair for pair in PAIRS[part]["different"] if is_same(*pair)] == []


@pytest.mark.parametrize(("part", "n_recognised"), N_RECOGNISED.items())
def test_most_pairs_with_the_same_meaning_are_recognised(part: str, n_recognised: int) -> None:
    assert sum(is_same(*pair) for pair in PAIRS[part]["same"]) == n_recognised


@pytest.mark.parametrize("part", PAIRS)
def test_search_terms_of_a_question_are_in_all_its_forms(part: str) -> None:
    pairs = [pair for pair in PAIRS[part]["same"] if is_same(*pair)]
    missing = [
        (term, text)
        for first, second in pairs
        for question, text in ((first, second), (second, first))
        for term in parse_question(question).search_terms
        if term not in text.casefold()
    ]
    assert missing == []


def test_comparison_is_symmetric() -> None:
    pairs = [pair for part in PAIRS.values() for kind in ("same", "different") for pair in part[kind]]
    assert all(is_same(first, second) == is_same(second, first) for first, second in pairs)


@pytest.mark.parametrize("text", ["", " \n", "hello", "hello!", "???", "test", "a" * (MAX_CHARS + 1)])
def test_texts_without_a_question_are_not_looked_up(text: str) -> None:
    assert not is_same(text, text)
    assert parse_question(text).search_terms == []


def test_question_without_words_for_the_index_is_not_looked_up() -> None:
    assert parse_question("How are you?").search_terms == []


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_text_is_parsed(text: str) -> None:
    question = parse_question(text)
    assert all(question.words)
    assert question.is_same(parse_question(text)) == bool(question.words)


@given(st.text(max_size=200))
def test_question_is_the_same_as_itself_in_another_case_and_with_other_spaces(text: str) -> None:
    question = parse_question(text)
    spaced = parse_question(f"  {text}\n\n")
    assert question.words == spaced.words
    assert all(len(term) >= 3 for term in question.search_terms)


@given(st.text(max_size=60), st.integers(0, 10**6), st.integers(0, 10**6))
def test_other_number_is_another_question(text: str, first: int, second: int) -> None:
    same = is_same(f"{text} compute {first} now", f"{text} compute {second} now")
    assert same == (first == second)


# Questions are built from parts that decide their meaning, and asked in forms that do not change it.
_PARTS: Final = (
    ("how do i", "why do i", "when should i", "can i", "can't i", "did i"),
    ("convert", "not convert", "send", "print"),
    ("5 files", "50 files", "five files", "a photo", "my photos", "your photos", "the US form", "a C++ file"),
    ("to", "from", "without", "before"),
    ("France", "Italy", "PDF", "Word", "the first page", "the last page", "Anna", "Emma"),
)
_FORMS: Final = (
    "{}", "{}?", "{}??", "Hi, {}?", "Hello! {}? Thanks!", "please {}", "{}, please", "Do you know {}?", "  {} \n",
    "Could you tell me {}?", "I would like to know {}.", "\u201c{}\u201d",
)  # fmt: skip
_INTRODUCED: Final = ("Do you know {}?", "Could you tell me {}?", "I would like to know {}.")


@given(st.data())
def test_form_of_a_question_does_not_count_and_each_part_does(data: st.DataObject) -> None:
    first = [data.draw(st.sampled_from(values)) for values in _PARTS]
    second = data.draw(st.sampled_from([first, [data.draw(st.sampled_from(values)) for values in _PARTS]]))
    texts = []
    for parts in (first, second):
        forms = [form for form in _FORMS if form not in _INTRODUCED or parts[0].startswith(("how", "why", "when"))]
        text = data.draw(st.sampled_from(forms)).format(" ".join(parts))
        is_upper = "US" not in parts[2] and data.draw(st.booleans())  # capitals keep "US" and "us" apart
        texts.append(text.upper() if is_upper else text)
    assert is_same(*texts) == (first == second)
