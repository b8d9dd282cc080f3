"""Exact search in 8-bit vectors, by every kernel of this processor, against Python."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Sequence

import pytest

from edgechat.documents.vector_scan import MAX_DIMS, MAX_QUERY, ScannedBlock, VectorLibrary, find_nearest, load_library
from edgechat.documents.vectors import quantize

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")


@pytest.fixture(params=[0, 1, 2])
def library(request: pytest.FixtureRequest) -> Iterator[VectorLibrary]:
    library = load_library()
    assert library is not None
    if not library.select_kernel(request.param):
        pytest.skip(f"kernel {request.param} is not supported")
    yield library
    library.select_kernel()


def make_block(ids: Sequence[int], factors: Sequence[float], rows: Sequence[Sequence[int]]) -> ScannedBlock:
    vectors = array("b", [value for row in rows for value in row]).tobytes()
    n_dims = len(rows[0]) if rows else 0
    return ScannedBlock(len(rows), n_dims, array("q", ids).tobytes(), array("f", factors).tobytes(), vectors)


@pytest.mark.parametrize("n_dims", [1, 15, 31, 32, 33, 63, 64, 100, 384, 385, 1024])
def test_results_equal_those_of_python(library: VectorLibrary, n_dims: int) -> None:
    numbers = random.Random(n_dims)
    rows = [[numbers.randint(-128, 127) for _ in range(n_dims)] for _ in range(200)]
    factors = array("f", [numbers.choice([0.25, 0.5, 1.0]) for _ in rows])
    query = array("h", [numbers.randint(-MAX_QUERY, MAX_QUERY) for _ in range(n_dims)])
    blocks = [
        make_block(range(start + 1, start + 51), factors[start : start + 50], rows[start : start + 50])
        for start in range(0, 200, 50)
    ]
    scores = [
        factor * sum(a * b for a, b in zip(row, query, strict=True)) for factor, row in zip(factors, rows, strict=True)
    ]
    expected = sorted(((score, i + 1) for i, score in enumerate(scores)), key=lambda item: (-item[0], item[1]))
    for n_results in (1, 7, 200, 300):
        found = sorted(library.find_nearest(blocks, query, n_results), key=lambda item: (-item[0], item[1]))
        assert [i for _, i in found] == [i for _, i in expected[:n_results]]
        assert [s for s, _ in found] == pytest.approx([s for s, _ in expected[:n_results]])


def test_largest_values_do_not_overflow(library: VectorLibrary) -> None:
    block = make_block([1, 2], [1.0, 1.0], [[-128] * MAX_DIMS, [127] * MAX_DIMS])
    found = library.find_nearest([block], array("h", [MAX_QUERY] * MAX_DIMS), 2)
    assert sorted(found) == [(-128.0 * MAX_QUERY * MAX_DIMS, 1), (127.0 * MAX_QUERY * MAX_DIMS, 2)]


def test_equal_scores_are_in_the_order_of_ids(library: VectorLibrary) -> None:
    blocks = [make_block([ids], [1.0], [[1, 1]]) for ids in (5, 3, 9, 1, 7, 2)]
    found = find_nearest(library, blocks, [1.0, 1.0], 4)
    assert [chunk_id for chunk_id, _ in found] == [1, 2, 3, 5]


def test_scores_are_close_to_exact_cosines(library: VectorLibrary) -> None:
    numbers = random.Random(1)

    def make_vector() -> list[float]:
        values = [numbers.gauss(0, 1) for _ in range(384)]
        norm = math.sqrt(sum(value * value for value in values))
        return [value / norm for value in values]

    vectors, query = [make_vector() for _ in range(100)], make_vector()
    quantized = [quantize(vector) for vector in vectors]
    block = ScannedBlock(
        100, 384, array("q", range(100)).tobytes(), array("f", [factor for factor, _ in quantized]).tobytes(),
        b"".join(data for _, data in quantized),
    )  # fmt: skip
    found = dict(find_nearest(library, [block], query, 100))
    errors = [abs(found[i] - sum(a * b for a, b in zip(vectors[i], query, strict=True))) for i in range(100)]
    assert max(errors) < 0.002


def test_blocks_with_wrong_sizes_and_queries_without_direction(library: VectorLibrary) -> None:
    good = make_block([1], [1.0], [[1, 2]])
    for block in (
        ScannedBlock(2, 2, good.ids, good.factors, good.vectors),
        ScannedBlock(1, 3, good.ids, good.factors, good.vectors),
        ScannedBlock(-1, 2, b"", b"", b""), ScannedBlock(1, 2, good.ids, b"", good.vectors),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="block of"):
            library.find_nearest([block], array("h", [1, 1]), 1)
    assert find_nearest(library, [good], [0.0, 0.0], 1) == []
    assert find_nearest(library, [good], [], 1) == []
    assert find_nearest(library, [good], [1.0, 0.0], 0) == []
    assert find_nearest(library, [], [1.0, 0.0], 1) == []


def test_quantized_zero_vector() -> None:
    assert quantize([0.0, 0.0]) == (0.0, b"\0\0")
    assert quantize([]) == (0.0, b"")
