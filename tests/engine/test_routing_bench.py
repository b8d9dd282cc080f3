"""The routing benchmark with tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench.routing import RoutingWorkload, run
from tests.models import write_parrot


@pytest.mark.slow
def test_both_models_answer_the_same_tasks(
    tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    small, large = (write_parrot(tmp_path / f"{name}.gguf", name) for name in ("1A", "2B"))
    workload = RoutingWorkload(small=small, large=large, n_tasks=2, temperature=0.7, max_tokens=8, agree=True)
    seen: list[str] = []
    report = run(workload, seen.append)
    assert [len(report.small_answers), len(report.large_answers)] == [2, 2]
    assert all(len(a.texts) == 2 and a.mean_logprob is not None and a.mean_logprob <= 0 for a in report.small_answers)
    assert all(len(a.texts) == 1 for a in report.large_answers)
    assert {"small alone", "large alone", "route, agree"} <= {result.name for result in report.results}
    assert any("2B.gguf: task 2 of 2" in text for text in seen)
