"""The native suffix index: equal to a slow reference, and small."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.runtime.bindings import Bindings
from edgechat.runtime.suffix_index import SuffixIndex
from tests.suffix_reference import PlainIndex

PROPERTY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.integers(1, 4).flatmap(lambda top: st.lists(st.integers(0, top), max_size=60))


@PROPERTY
@given(st.data())
def test_index_equals_the_reference(native: Bindings, data: st.DataObject) -> None:
    index, reference = SuffixIndex(native.edgechat, data.draw(st.integers(0, 100))), PlainIndex()
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.integers(0, 3)):
            tokens = data.draw(TEXTS) + data.draw(st.sampled_from([[], [], [-1]]))
            index.append(tokens)
            reference.append(tokens)
        else:
            size = data.draw(st.integers(0, len(reference)))
            index.truncate(size)
            reference.truncate(size)
        assert len(index) == len(reference)
        assert index.draft(12) == reference.draft(12)
        other = data.draw(TEXTS)
        assert index.draft(12, other) == reference.draft(12, other)


def test_draft_continues_a_loop(native: Bindings) -> None:
    index = SuffixIndex(native.edgechat, 100)
    index.append([7, 8, 9, 7, 8, 9, 7])
    assert index.draft(8) == ([8, 9, 7, 8, 9, 7, 8, 9], 4, 4)


def test_empty_index_and_text_without_a_match_draft_nothing(native: Bindings) -> None:
    index = SuffixIndex(native.edgechat, 0)
    assert index.draft(5) == ([], 0, -1)
    assert index.draft(5, []) == ([], 0, -1)
    index.append([])
    index.append([3])
    assert index.draft(5) == ([], 0, -1)
    assert index.draft(5, [3]) == ([], 0, -1)  # no token follows the match
    index.append([3])
    assert index.draft(0) == ([], 1, 1)
    index.truncate(-5)
    assert len(index) == 0


TEXT_KINDS = ("random", "one token", "a long loop", "words")


def make_text(kind: str, size: int) -> list[int]:
    rng = random.Random(0)
    if kind == "random":
        return [rng.randrange(150_000) for _ in range(size)]
    if kind == "one token":
        return [5] * size
    if kind == "a long loop":
        period = [rng.randrange(1000) for _ in range(997)]
        return (period * (size // len(period) + 1))[:size]
    # Tokens with the frequencies of words, and with repeated phrases.
    text: list[int] = []
    while len(text) < size:
        if text and rng.random() < 0.2:
            start = rng.randrange(len(text))
            text += text[start : start + rng.randrange(2, 30)]
        else:
            text.append(int(rng.paretovariate(0.7)) % 50_000)
    return text[:size]


@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 1 << 18])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_append_and_draft_take_bounded_memory(native: Bindings, kind: str, size: int) -> None:
    text = make_text(kind, size + 500)
    index = SuffixIndex(native.edgechat, size)
    index.append(text[:size])
    assert index.n_bytes <= 36 * size + 1024
    for token in text[size:]:
        index.append([token])
        index.draft(31)
    assert index.n_bytes <= 64 * len(text) + 1024


def test_index_that_grows_takes_bounded_memory(native: Bindings) -> None:
    text = make_text("words", 1 << 10)
    index = SuffixIndex(native.edgechat, 0)
    for start in range(0, len(text), 100):
        index.append(text[start : start + 100])
    assert index.n_bytes <= 64 * len(text) + 1024
