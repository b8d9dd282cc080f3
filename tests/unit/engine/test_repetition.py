"""Detection of loops in an output."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.bench.workloads import read_workloads
from edgechat.engine.repetition import (
    MAX_PERIOD,
    MIN_DISTINCT_TOKENS,
    MIN_REPEATS,
    MIN_TOKENS,
    MIN_UNIFORM_TOKENS,
    RepetitionDetector,
)


def find_loop_end(tokens: Sequence[int]) -> int | None:
    """Return the number of tokens after which the detector reports a loop."""
    output: list[int] = []
    detector = RepetitionDetector(output)
    for token in tokens:
        output.append(token)
        if detector.check():
            return len(output)
    return None


def find_loop_end_slowly(tokens: Sequence[int]) -> int | None:
    """Compute the same by the definition of a loop, for every period and every length."""
    periods = np.arange(1, MAX_PERIOD + 1)
    run_lengths = np.zeros(MAX_PERIOD, dtype=int)
    padded = np.array([-1] * MAX_PERIOD + list(tokens))
    for n in range(1, len(tokens) + 1):
        end = n + MAX_PERIOD - 1
        run_lengths = (run_lengths + 1) * (padded[end - MAX_PERIOD : end][::-1] == padded[end])
        lengths = run_lengths + periods
        for period in periods[(run_lengths > 0) & (lengths >= np.maximum(MIN_TOKENS, MIN_REPEATS * periods))]:
            n_distinct = len(set(tokens[n - period : n]))
            if n_distinct >= MIN_DISTINCT_TOKENS or lengths[period - 1] >= MIN_UNIFORM_TOKENS:
                return n
    return None


def to_tokens(text: str) -> list[int]:
    """Split a text into about as many tokens as a vocabulary of a language model does."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(word, len(numbers)) for word in re.findall(r" ?\w{1,6}|\s|[^\w\s]", text)]


def random_tokens(seed: int, n_tokens: int, n_vocab: int = 50_000) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(n_vocab) for _ in range(n_tokens)]


blocks = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 60)), min_size=1, max_size=12
)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90)), max_size=14), blocks, st.integers(0, 15))
def test_detector_agrees_with_the_definition(
    structure: list[tuple[int, int]], passages: list[tuple[list[int], int]], n_before: int
) -> None:
    tokens = random_tokens(0, n_before)
    for index, n_tokens in structure:  # rows of a few kinds, so that parts of a loop repeat within it
        tokens += [100 * index + i % 17 for i in range(n_tokens)]
    for passage, count in passages:
        tokens += passage * count
    tokens = (tokens * 4)[:2600]
    assert find_loop_end(tokens) == find_loop_end_slowly(tokens)


@given(st.integers(1, 450), st.integers(0, 60), st.integers(2, 40), st.integers(0, 2**16))
def test_loops_of_random_passages_agree_with_the_definition(
    period: int, n_before: int, n_vocab: int, seed: int
) -> None:
    passage = random_tokens(seed, period, n_vocab)
    tokens = random_tokens(seed + 1, n_before) + (passage * 700)[:1500]
    assert find_loop_end(tokens) == find_loop_end_slowly(tokens)


@pytest.mark.parametrize("period", [1, 7, 60, 350])
def test_forced_loop_is_noticed_within_four_periods_and_the_minimum(period: int) -> None:
    minimum = MIN_TOKENS if period >= MIN_DISTINCT_TOKENS else MIN_UNIFORM_TOKENS
    for seed in range(50):
        before = random_tokens(seed, random.Random(seed).randrange(500))
        end = find_loop_end(before + random_tokens(seed + 1000, period) * 1600)
        assert end is not None
        assert end - len(before) <= max(minimum, MIN_REPEATS * period) <= 4 * period + minimum


def test_single_different_token_starts_the_count_again() -> None:
    passage = random_tokens(1, 60)
    tokens = passage * 3 + [60_000] + passage * 5
    assert find_loop_end(passage * 3) is None
    assert find_loop_end(tokens) == 180 + 1 + 60 * MIN_REPEATS


def test_loop_is_noticed_after_a_long_output() -> None:
    assert find_loop_end(random_tokens(2, 5000) + random_tokens(3, 100) * 5) == 5400


def make_harmless_texts() -> dict[str, str]:
    refrain = "And the sea rolls on, and the sea rolls on, and nobody counts the waves.\n" * 2
    verses = [" ".join(f"line{i}{verse}" for i in range(30)) + "\n" for verse in "abcdefgh"]
    return {
        "numbered list": "".join(
            f"{i}. Check the valve and write the pressure into the table.\n" for i in range(1, 90)
        ),
        "counting": "".join(f"{i}\n" for i in range(1, 500)),
        "dates": "".join(f"| 2026-{i // 28 + 1:02}-{i % 28 + 1:02} | 09:00 | 17:00 | office |\n" for i in range(90)),
        "multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 11) for b in range(1, 11)),
        "poem with a refrain": "".join(verse + refrain for verse in verses),
        "zeros, 16 x 16": ("0, " * 15 + "0\n") * 16,
        "identity matrix": "".join(" ".join("01"[i == j] for j in range(24)) + "\n" for i in range(24)),
        "empty table": "| Name | Phone | E-mail |\n|---|---|---|\n" + "|  |  |  |\n" * 30,
        "line written fifty times": "I will not talk in class.\n" * 50,
        "equal rows": "| open | closed | open | closed |\n" * 24,
        "three equal test cases": "assert add(1, 2) == 3\nassert add(2, 3) == 5\n" * 3,
        "chorus that is sung three times": "".join(verses) + verses[0] * 3,
        "enumeration in code": "".join(f"    case {i}: return table[{i}];\n" for i in range(120)),
        "JSON records": "".join(f'{{"id": {i}, "name": "user{i}", "active": true, "tags": []}},\n' for i in range(60)),
        "switches": "".join(f"interface eth{i}\n no shutdown\n switchport mode access\n!\n" for i in range(48)),
    }


@pytest.mark.parametrize("name", make_harmless_texts())
def test_lists_tables_and_refrains_are_no_loops(name: str) -> None:
    assert find_loop_end(to_tokens(make_harmless_texts()[name])) is None


def test_texts_of_the_speculation_benchmark_are_no_loops() -> None:
    workloads = read_workloads()
    texts = [*workloads.texts.values(), *map(workloads.reply, workloads.cases)]
    assert len(texts) > 20
    assert [text[:40] for text in texts if find_loop_end(to_tokens(text))] == []


def test_sentence_that_repeats_without_end_is_a_loop() -> None:
    sentence = "Wait, let me check this again, because the sum of the two numbers must be even and it is not. "
    assert find_loop_end(to_tokens("The answer is 12. " + sentence * 40)) is not None
    assert find_loop_end(to_tokens("!" * 1000)) == MIN_UNIFORM_TOKENS
