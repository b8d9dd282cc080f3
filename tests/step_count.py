"""Count the steps of Python code, which unlike its time do not depend on the speed and the load of the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def count_steps(function: Callable[[], object]) -> int:
    """Call `function`; return the number of bytecode instructions that this thread executes, without those in C."""
    n_steps = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal n_steps
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        n_steps += event == "opcode"
        return trace

    previous_trace = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(previous_trace)
    return n_steps


def takes_linear_time(measured: Callable[[int], Callable[[], object]], count: int = 100) -> bool:
    """Return whether work for four times as many items takes at most about four times as many steps.

    `measured(n)` prepares the work for `n` items, and returns the function that does it.
    """
    measured(count)()  # what happens only once, such as imports, is not counted
    return count_steps(measured(4 * count)) < 5 * count_steps(measured(count))
