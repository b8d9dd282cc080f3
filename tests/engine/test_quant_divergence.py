"""Divergence of the quants of a model, measured with the starter model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgechat.bench import quant_divergence
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError
from edgechat.planner.quality import compute_divergence_loss
from tests.conftest import Cli


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def test_smaller_quants_diverge_more(starter: Path, scratch: Path) -> None:
    engine, progress = EngineClient(), list[str]()
    try:
        results = dict(quant_divergence.measure(engine, starter, ["Q8_0", "Q2_K"], scratch, progress.append))
    finally:
        engine.close()
    assert 0 < results["Q8_0"].divergence < 0.05
    assert results["Q2_K"].divergence > 0.2
    assert results["Q8_0"].agreement > 0.9 > results["Q2_K"].agreement
    assert any("Q2_K: tensor" in text for text in progress)
    assert list(scratch.iterdir()) == []


def test_failed_measurement_leaves_no_file(starter: Path, scratch: Path) -> None:
    engine = EngineClient()
    try:
        with pytest.raises(EdgechatError):
            list(quant_divergence.measure(engine, starter, ["Q4_0", "IQ1_S"], scratch))
    finally:
        engine.close()
    assert list(scratch.iterdir()) == []


@pytest.mark.long
def test_plan_counts_the_measured_loss(cli: Cli) -> None:
    output = cli("plan", "starter", "--quants", "--measure", "--ctx", "512", "--json").stdout
    rows = {row["quant"]: row for row in json.loads(output)["models"]}
    source = rows["Q4_1"]
    assert source["divergence"] is None
    for quant in ("Q2_K", "Q8_0"):
        expected = source["quality_loss"] + compute_divergence_loss(rows[quant]["divergence"])
        assert rows[quant]["quality_loss"] == pytest.approx(expected, abs=0.02)
