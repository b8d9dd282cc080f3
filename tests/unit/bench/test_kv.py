"""Workloads, table and divergence of the KV benchmark."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgechat.bench import kv
from edgechat.bench.kv_measure import compute_divergence, compute_logprobs
from edgechat.bench.kv_report import KvCase, KvCaseOptions, KvDepthResult, KvReport, KvWorkload
from edgechat.errors import UsageError
from edgechat.planner.kv_types import KV_TYPES


def write_header(path: Path, *, n_ctx: int = 8192, head_size: int = 64) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(4 * head_size)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_feed_forward_length(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_default_workload_measures_all_types_against_f16(tmp_path: Path) -> None:
    workload = kv.make_workload(write_header(tmp_path / "m.gguf"), 2, [], [])
    assert [case.title for case in workload.cases] == ["f16", "f16, batches of 32", *KV_TYPES[1:]]
    assert workload.depths == [2048, 8192]


def test_chosen_types_are_measured_after_f16(tmp_path: Path) -> None:
    workload = kv.make_workload(write_header(tmp_path / "m.gguf"), 2, ["q4_0", "q8_0"], [4096])
    assert [case.kv_type for case in workload.cases] == ["f16", "f16", "q8_0", "q4_0"]
    assert workload.depths == [4096]


def test_unsupported_type_and_depth_are_refused(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.gguf", n_ctx=4096, head_size=96)
    assert [case.kv_type for case in kv.make_workload(path, 2, [], []).cases] == ["f16", "f16", "q8_0"]
    assert kv.make_workload(path, 2, [], []).depths == [2048]
    with pytest.raises(UsageError, match="supports only these types: f16, q8_0"):
        kv.make_workload(path, 2, ["q4_0"], [])
    with pytest.raises(UsageError, match="trained with 4096 tokens"):
        kv.make_workload(path, 2, [], [8192])


def test_yarn_workload_is_four_times_as_long_as_the_training_length(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.gguf", n_ctx=4096)
    workload = kv.make_workload(path, 2, [], [], with_yarn=True)
    assert workload.depths == [16384]
    assert [case.title for case in workload.cases] == ["f16", "f16, YaRN 4"]
    with pytest.raises(UsageError, match="needs no extension"):
        kv.make_workload(path, 2, [], [2048], with_yarn=True)


def test_divergence_is_that_of_the_definition() -> None:
    logits = [np.log(np.array(p, dtype=np.float32)) + shift for p, shift in (([0.5, 0.5], 3), ([0.25, 0.75], -7))]
    first, second = (compute_logprobs(row) for row in logits)
    assert np.exp(first).sum() == pytest.approx(1)
    assert compute_divergence(first, first) == 0
    assert compute_divergence(first, second) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)


def test_table_has_a_row_for_each_type_and_depth() -> None:
    results = [
        KvDepthResult(depth=depth, divergence=0.0125, agreement=0.975, n_found_needles=9, prefill_cpu_s=12.5)
        for depth in (2048, 8192)
    ]
    options = [KvCaseOptions(kv_type="q4_0", yarn_factor=factor) for factor in (1.0, 4.0)]
    cases = [KvCase(options=case_options, depths=results) for case_options in options]
    workload = KvWorkload(model="m.gguf", n_threads=2, depths=[2048, 8192], cases=options)
    table = kv.format_table(KvReport(workload=workload, backend="cpu-x", cases=cases))
    assert "| q4_0 | 2048 | 0.01250 | 97.5% | 9 of 10 | 1.00 |" in table
    assert "| q4_0, YaRN 4 | 8192 |" in table
