"""The suffix index against a plain one, its speed, and its memory."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.runtime.bindings import Bindings
from edgechat.runtime.suffix_index import SuffixIndex
from tests.suffix_reference import PlainIndex

ANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.integers(1, 4).flatmap(lambda top: st.lists(st.integers(0, top), max_size=60))


@ANY
@given(st.data())
def test_it_finds_what_a_plain_search_finds(native: Bindings, data: st.DataObject) -> None:
    index, plain = SuffixIndex(native.edgechat, data.draw(st.integers(0, 100))), PlainIndex()
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.integers(0, 3)):
            tokens = data.draw(TEXTS) + data.draw(st.sampled_from([[], [], [-1]]))
            index.append(tokens)
            plain.append(tokens)
        else:
            size = data.draw(st.integers(0, len(plain)))
            index.truncate(size)
            plain.truncate(size)
        assert len(index) == len(plain)
        assert index.draft(12) == plain.draft(12)
        other = data.draw(TEXTS)
        assert index.draft(12, other) == plain.draft(12, other)


def test_a_loop_goes_on(native: Bindings) -> None:
    index = SuffixIndex(native.edgechat, 100)
    index.append([7, 8, 9, 7, 8, 9, 7])
    assert index.draft(8) == ([8, 9, 7, 8, 9, 7, 8, 9], 4, 4)


def test_nothing_is_found_in_nothing(native: Bindings) -> None:
    index = SuffixIndex(native.edgechat, 0)
    assert index.draft(5) == ([], 0, -1)
    assert index.draft(5, []) == ([], 0, -1)
    index.append([])
    index.append([3])
    assert index.draft(5) == ([], 0, -1)
    assert index.draft(5, [3]) == ([], 0, -1)  # nothing follows it
    index.append([3])
    assert index.draft(0) == ([], 1, 1)
    index.truncate(-5)
    assert len(index) == 0


TEXT_KINDS = ("random", "one token", "a long loop", "words")


def a_text(kind: str, size: int) -> list[int]:
    draw = random.Random(0)
    if kind == "random":
        return [draw.randrange(150_000) for _ in range(size)]
    if kind == "one token":
        return [5] * size
    if kind == "a long loop":
        period = [draw.randrange(1000) for _ in range(997)]
        return (period * (size // len(period) + 1))[:size]
    # Tokens as frequent as words are, with phrases that come back.
    text: list[int] = []
    while len(text) < size:
        if text and draw.random() < 0.2:
            start = draw.randrange(len(text))
            text += text[start : start + draw.randrange(2, 30)]
        else:
            text.append(int(draw.paretovariate(0.7)) % 50_000)
    return text[:size]


@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 1 << 18])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_token_takes_little_time_and_memory(native: Bindings, kind: str, size: int) -> None:
    """No claim of speed, but a bound that a quadratic search would break by far: 50 microseconds for each token."""
    index = SuffixIndex(native.edgechat, size)
    index.append(a_text(kind, size))
    assert index.n_bytes <= 36 * size + 1024
    more = a_text(kind, size + 500)[size:]
    started = time.process_time()
    for token in more:
        index.append([token])
        index.draft(31)
    assert time.process_time() - started < 10 * 50e-6 * len(more)
    grown = SuffixIndex(native.edgechat, 0)
    for start in range(0, size, 100):
        grown.append(a_text("words", size)[start : start + 100]) if size <= 1 << 10 else None
    assert grown.n_bytes <= 64 * max(len(grown), 64) + 1024
