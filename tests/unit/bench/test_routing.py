"""The routing benchmark computes every route from the same replies."""

from __future__ import annotations

import pytest

from edgechat.bench.routing import choose_thresholds, compare_routes
from edgechat.bench.routing_report import AnsweredTask, RoutingReport, format_table


def _answer(
    text: str, mean_logprob: float, *, is_correct: bool, n_tokens: int = 10, n_replies: int = 1
) -> AnsweredTask:
    return AnsweredTask(
        kind="arithmetic", is_correct=is_correct, texts=[text, "The answer is 5."][:n_replies],
        tokens=[n_tokens] * n_replies, mean_logprob=mean_logprob, seconds=1.0,
    )  # fmt: skip


SMALL = [
    _answer("The answer is 5.", -0.1, is_correct=True, n_replies=2),
    _answer("The answer is 6.", -0.5, is_correct=False, n_replies=2),
    _answer("The answer is 7.", -0.9, is_correct=False, n_replies=2),
    _answer("I don't know.", -0.2, is_correct=False, n_replies=2),
]
LARGE = [_answer("The answer is 5.", -0.1, is_correct=i != 2, n_tokens=40) for i in range(4)]


def test_routes_follow_from_the_replies_of_both_models() -> None:
    results = {r.name: r for r in compare_routes(SMALL, LARGE, (-0.95, -0.4), agree=True)}
    assert results["small alone"].accuracy.value == 0.25
    assert results["large alone"].accuracy.value == 0.75
    assert results["route, dont_know"].escalated_share == 0.25
    assert results["route, min_logprob -0.95"].escalated_share == 0.25
    route = results["route, min_logprob -0.4"]
    assert (route.escalated_share, route.accuracy.value) == (0.75, 0.75)
    assert (route.small_tokens_per_task, route.large_tokens_per_task) == (10, 30)
    assert route.seconds_per_task == pytest.approx(1.75)
    agreeing = results["route, agree"]
    assert (agreeing.escalated_share, agreeing.small_tokens_per_task) == (0.75, 20)


def test_models_alone_cost_only_their_own_tokens() -> None:
    small, large, *_ = compare_routes(SMALL, LARGE, (), agree=False)
    assert (small.small_tokens_per_task, small.large_tokens_per_task, small.escalated_share) == (10, 0, 0)
    assert (large.small_tokens_per_task, large.large_tokens_per_task, large.escalated_share) == (0, 40, 1)
    assert large.seconds_per_task == 1.0


def test_default_thresholds_escalate_growing_shares() -> None:
    values = [-i / 100 for i in range(100)]
    thresholds = choose_thresholds(values)
    assert list(thresholds) == sorted(thresholds)
    assert [round(sum(v < t for v in values) / 100, 1) for t in thresholds] == [0.1, 0.2, 0.5, 0.8]
    assert choose_thresholds([None, float("nan")]) == ()
    assert len(choose_thresholds([-0.5])) == 1


def test_table_has_a_row_for_each_route() -> None:
    results = compare_routes(SMALL, LARGE, (-0.4,), agree=False)
    report = RoutingReport(
        small="a.gguf", large="b.gguf", temperature=0.7, seed=1, n_tasks=4, results=results, small_answers=SMALL,
        large_answers=LARGE,
    )  # fmt: skip
    lines = format_table(report).splitlines()
    assert lines[0] == "a.gguf and b.gguf, temperature 0.7, 4 tasks of seed 1"
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert lines[-1].startswith("| route, min_logprob -0.4 | 75.0% | ")
