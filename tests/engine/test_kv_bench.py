"""The KV benchmark in its child process, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench import kv
from edgechat.bench.kv_report import KvCaseOptions, KvWorkload
from edgechat.errors import EngineError
from tests.models import write_parrot


def test_benchmark_measures_each_case(tmp_path: Path) -> None:
    workload = kv.make_workload(write_parrot(tmp_path / "tiny.gguf", "Hi!"), 1, [], [1024])
    progress: list[str] = []
    report = kv.run(workload, progress.append)
    assert [case.options.title for case in report.cases] == ["f16", "f16, batches of 32"]
    reference, other = (case.depths[0] for case in report.cases)
    assert (reference.depth, reference.divergence, reference.agreement) == (1024, 0.0, 1.0)
    assert abs(other.divergence) < 1e-3
    assert reference.n_found_needles == 0  # the model repeats one reply
    assert progress[0] == "f16: token 0 of 1,024"


def test_yarn_is_applied(tmp_path: Path) -> None:
    workload = kv.make_workload(write_parrot(tmp_path / "tiny.gguf", "Hi!"), 1, [], [4096], with_yarn=True)
    assert [case.options.title for case in kv.run(workload).cases] == ["f16", "f16, YaRN 2"]


def test_error_of_the_child_process_is_raised(tmp_path: Path) -> None:
    workload = KvWorkload(model=str(tmp_path / "none.gguf"), n_threads=1, depths=[1024], cases=[KvCaseOptions()])
    with pytest.raises(EngineError, match=r"none\.gguf"):
        kv.run(workload)
