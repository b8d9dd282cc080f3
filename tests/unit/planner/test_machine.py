"""Resources of a machine that are available to a plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.planner.machine import compute_reserved_bytes
from edgechat.planner.plan import plan
from tests.unit.planner.profiles import GIB, llama, machine


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(4 * GIB, 4 * GIB // 5), (9 * GIB, 2 * GIB), (64 * GIB, 64 * GIB // 5)],
)
def test_a_fifth_of_the_memory_is_left_to_other_programs(total: int, reserve: int) -> None:
    assert compute_reserved_bytes(total) == reserve


@given(st.integers(0, 64 * GIB), st.integers(0, GIB))
def test_more_memory_never_leaves_less_for_models(total: int, more: int) -> None:
    assert total - compute_reserved_bytes(total) <= total + more - compute_reserved_bytes(total + more)


def test_load_uses_the_reserved_memory_only_if_the_model_needs_it() -> None:
    needed = plan(llama(), machine(64 * GIB)).estimate.total
    ample = plan(llama(), machine(4 * needed, reserved_bytes=needed))
    assert ample.estimate.total <= 3 * needed
    smaller = plan(llama(), machine(needed, reserved_bytes=needed // 10))
    assert smaller.estimate.total <= needed - needed // 10
    assert smaller.concessions
    tight = plan(llama(), machine(needed, reserved_bytes=needed - 1))
    assert tight.estimate.total > 1
