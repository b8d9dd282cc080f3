"""Self-tests, in idle time, of the weight types that the loaded model does not use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from edgechat.errors import EdgechatError
from edgechat.runtime.backends import gpu_type_tests, probe
from edgechat.runtime.backends.bundle import find_bundle

IDLE_S: Final = 60.0
"""Time without a request after which the tests begin. They need the processor and the GPU for minutes."""


def _test_gpus(is_cancelled: Callable[[], bool]) -> None:
    bundle = find_bundle()
    module, _ = probe.choose_module(bundle)
    gpu_type_tests.test_unused_types(bundle, module, is_cancelled)


class IdleSelftests:
    """Tests of the GPUs in a background thread, so that the next model with other weights need not wait for them.

    The types that were tested before a pause are not tested again.
    """

    def __init__(self, test: Callable[[Callable[[], bool]], None] = _test_gpus) -> None:
        """`test` runs all tests that are left, until the function in its argument returns True."""
        self._test = test
        self._thread: threading.Thread | None = None
        self._is_paused = threading.Event()
        self._is_complete = False

    def step(self, idle_s: float) -> float | None:
        """Start the tests after `IDLE_S` of idle time; return the delay until the next call; None at the end."""
        if self._is_complete:
            return None
        if self._thread is not None and self._thread.is_alive():
            return IDLE_S
        if idle_s < IDLE_S:
            return IDLE_S - idle_s
        self._is_paused.clear()
        self._thread = threading.Thread(target=self._run, name="idle-selftests", daemon=True)
        self._thread.start()
        return IDLE_S

    def _run(self) -> None:
        try:
            self._test(self._is_paused.is_set)
        except (EdgechatError, OSError):  # the test before the next load reports the error
            self._is_complete = True
        else:
            self._is_complete = not self._is_paused.is_set()

    def pause(self) -> None:
        """End the running test soon, because the engine has work to do."""
        self._is_paused.set()
