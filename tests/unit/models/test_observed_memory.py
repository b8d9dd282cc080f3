"""Observed memory of models, and its part in plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.models import observed_memory
from tests.conftest import Cli

MIB = 1 << 20


@pytest.mark.slow
def test_largest_difference_of_the_last_loads_counts_in_plans(cli: Cli, starter: Path) -> None:
    observed_memory.record(str(starter), 100 * MIB, 140 * MIB)
    observed_memory.record(str(starter), 100 * MIB, 90 * MIB)
    assert observed_memory.extra_bytes(str(starter)) == 40 * MIB
    assert observed_memory.extra_bytes("other.gguf") == 0
    row = json.loads(cli("plan", "starter", "--json", "--no-measure").stdout)["models"][0]
    assert row["memory"]["learned"] == 40 * MIB
    for _ in range(5):
        observed_memory.record(str(starter), 100 * MIB, 90 * MIB)
    assert observed_memory.extra_bytes(str(starter)) == 0


def test_damaged_file_counts_as_no_observation(starter: Path) -> None:
    observed_memory.record(str(starter), 100 * MIB, 140 * MIB)
    paths.observed_memory_file().write_text("[1]")
    assert observed_memory.extra_bytes(str(starter)) == 0
