"""Number of inputs of the fuzz tests, which `make test-long` runs with a twentieth of their inputs."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("EDGECHAT_FUZZ_SHARE", "0.05"))
"""Share of the inputs to try. CONTRIBUTING.md says when to run all of them."""


def scale(count: int) -> int:
    """Return the number of inputs to try of `count`."""
    return max(1, round(count * SHARE))
