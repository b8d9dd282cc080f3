"""Divergence of the quants of a model, measured with a small random model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench import quant_divergence
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, read_cpu
from edgechat.planner.quality import compute_divergence_loss
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import choose_module
from tests.conftest import Cli
from tests.layered_models import write_wide_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_llama(tmp_path_factory.mktemp("wide") / "wide.gguf", n_layer=4)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def test_smaller_quants_diverge_more(empty_engine: EngineClient, source: Path, scratch: Path) -> None:
    progress: list[str] = []
    results = dict(quant_divergence.measure(empty_engine, source, ["Q8_0", "Q2_K"], scratch, progress.append))
    assert 0 < results["Q8_0"].divergence < 0.05
    assert results["Q2_K"].divergence > 0.2
    assert results["Q8_0"].agreement > 0.9 > results["Q2_K"].agreement
    assert any("Q2_K: tensor" in text for text in progress)
    assert list(scratch.iterdir()) == []


def test_failed_measurement_leaves_no_file(empty_engine: EngineClient, source: Path, scratch: Path) -> None:
    with pytest.raises(EdgechatError):
        list(quant_divergence.measure(empty_engine, source, ["Q4_0", "IQ1_S"], scratch))
    assert list(scratch.iterdir()) == []


def save_kernel_speeds() -> None:
    """Save made-up speeds of this machine, so that it is not measured."""
    module, n_threads = choose_module(find_bundle())[0], candidate_thread_counts()[-1]
    speeds = KernelSpeeds(
        backend=module.name, n_threads=n_threads, n_decode_threads=n_threads, n_prefill_threads=n_threads,
        max_n_threads=n_threads, measured_at=time.time(), operations_per_s=1e6,
        product_rates={name: dict.fromkeys((1, 4, 32), 10000000000.0) for name in ("F16", "F32", "Q4_0", "Q8_0")},
    )  # fmt: skip
    key = verdicts.compute_verdict_key(find_bundle(), module, read_cpu())
    JsonFile(paths.kernel_speeds_file(), dict[str, KernelSpeeds], max_bytes=1 << 20).write({key: speeds})


@pytest.mark.long
def test_plan_counts_the_measured_loss(cli: Cli, source: Path) -> None:
    save_kernel_speeds()
    output = cli("plan", str(source), "--quants", "--measure", "--ctx", "512", "--json").stdout
    rows = {row["quant"]: row for row in json.loads(output)["models"]}
    assert rows["F16"]["divergence"] is None
    for quant in ("Q2_K", "Q8_0"):
        expected = rows["F16"]["quality_loss"] + compute_divergence_loss(rows[quant]["divergence"])
        assert rows[quant]["quality_loss"] == pytest.approx(expected, abs=0.02)
