"""Hidden rows of a context: which are kept, and for which text."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from edgechat.planner.drafter_plan import MAX_HIDDEN_ROWS
from edgechat.runtime.hidden_rows import HiddenRows


class FakeLibrary:
    """libedgechat whose row of an output is its index in the batch, twice."""

    def __init__(self) -> None:
        self.code = 0

    def edgechat_copy_rows(
        self, _pointer: Any, _layers: Any, _n_layers: int, indexes: Any, count: int, rows: Any
    ) -> int:  # fmt: skip
        for i in range(count):
            rows[2 * i] = rows[2 * i + 1] = float(indexes[i])
        return self.code


def make_rows() -> tuple[HiddenRows, FakeLibrary]:
    library = FakeLibrary()
    bindings: Any = SimpleNamespace(edgechat=library)
    return HiddenRows(bindings, 2), library


def read(rows: HiddenRows, seq: int, start: int, end: int) -> list[float]:
    data = rows.join(seq, start, end)
    return list((ctypes.c_float * (len(data) // 4)).from_buffer_copy(data))


def test_rows_of_two_sequences() -> None:
    rows, _ = make_rows()
    rows.record(None, [(0, 10, 0), (0, 11, 1), (1, 5, 2)])
    assert read(rows, 0, 10, 12) == [0, 0, 1, 1]
    assert read(rows, 1, 5, 6) == [2, 2]
    assert rows.find_first(0, 11) == 10
    assert rows.find_first(0, 12) == 13
    assert rows.find_first(2, 3) == 4


def test_only_the_newest_rows_are_kept() -> None:
    rows, _ = make_rows()
    rows.record(None, [(0, i, i) for i in range(MAX_HIDDEN_ROWS + 20)])
    assert rows.find_first(0, MAX_HIDDEN_ROWS + 19) == 20
    rows.record(None, [(0, MAX_HIDDEN_ROWS + 20, 0)])
    assert rows.find_first(0, MAX_HIDDEN_ROWS + 20) == 21


def test_removed_and_copied_tokens() -> None:
    rows, _ = make_rows()
    rows.record(None, [(0, i, i) for i in range(5)])
    rows.copy(0, 1, 3)
    rows.truncate(0, 2)
    assert (rows.find_first(0, 1), rows.find_first(0, 4)) == (0, 5)
    assert read(rows, 1, 0, 3) == [0, 0, 1, 1, 2, 2]
    rows.copy(2, 1, 3)
    assert rows.find_first(1, 2) == 3


def test_rows_that_llama_cpp_does_not_have() -> None:
    rows, library = make_rows()
    library.code = -1
    rows.record(None, [(0, 0, 0)])
    assert rows.find_first(0, 0) == 1
