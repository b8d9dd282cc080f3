"""The reasoning benchmark with tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench.reasoning import ReasoningWorkload, parse_method, run
from edgechat.errors import UsageError
from tests.models import write_parrot, write_tiny_llama


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model whose replies are complete after a few tokens."""
    return write_parrot(tmp_path_factory.mktemp("models") / "parrot.gguf", "1A")


@pytest.mark.slow
def test_all_methods_answer_the_same_tasks(parrot: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    methods = [parse_method(name) for name in ("single", "agree3", "likely2", "judge2")]
    seen: list[str] = []
    report = run(
        ReasoningWorkload(model=parrot, methods=methods, n_tasks=2, temperature=0.7, max_tokens=24), seen.append
    )
    assert report.n_tasks == 2
    assert {name: len(correct) for name, correct in report.correct.items()} == {method.name: 2 for method in methods}
    results = {result.name: result for result in report.methods}
    assert results["likely 2"].replies_per_task == 2
    assert results["single"].replies_per_task == 1
    assert 2 <= results["agree 3"].replies_per_task <= 3
    assert results["likely 2"].tokens_per_task > results["single"].tokens_per_task
    assert any("Task 2 of 2" in text for text in seen)


@pytest.mark.slow
def test_parallel_tasks_stay_in_order(parrot: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    methods = [parse_method(name) for name in ("single", "agree3")]
    workload = ReasoningWorkload(model=parrot, methods=methods, n_tasks=6, temperature=0.7, max_tokens=4, n_parallel=3)
    report = run(workload)
    assert report.n_tasks == 6
    assert list(report.methods[0].accuracy_by_kind) == ["arithmetic", "choice", "json"]  # the order of the tasks


@pytest.mark.slow
def test_model_without_reasoning_is_refused(parrot: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    workload = ReasoningWorkload(
        model=parrot, methods=[parse_method("think64")], n_tasks=1, temperature=0.7, max_tokens=4
    )
    with pytest.raises(UsageError, match="does not reason"):
        run(workload)


@pytest.mark.slow
def test_reasoning_is_limited(tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    model = write_tiny_llama(tmp_path / "m.gguf", template=template)
    methods = [parse_method(name) for name in ("single", "think16")]
    report = run(ReasoningWorkload(model=model, methods=methods, n_tasks=2, temperature=1.0, max_tokens=8))
    single, thinking = report.methods
    assert single.tokens_per_task <= 8
    assert thinking.tokens_per_task <= 8 + 16


@pytest.mark.slow
def test_no_task_starts_after_the_time_limit(
    parrot: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    workload = ReasoningWorkload(
        model=parrot, methods=[parse_method("single")], n_tasks=5, temperature=0.7, max_tokens=4
    )
    report = run(workload, time_limit_s=0.0)
    assert report.n_tasks == 0
    assert report.methods[0].accuracy.value == 0.0
