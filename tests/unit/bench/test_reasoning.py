"""Tasks, methods and statistics of the reasoning benchmark."""

from __future__ import annotations

import re

import pytest

from edgechat.bench.reasoning import DEFAULT_METHODS, Method, parse_method
from edgechat.bench.reasoning_report import (
    Interval,
    MethodResult,
    ReasoningReport,
    compare_paired,
    compute_mcnemar_p,
    compute_wilson_interval,
    format_table,
)
from edgechat.bench.reasoning_tasks import make_task
from edgechat.errors import UsageError


def test_tasks_depend_only_on_seed_and_index() -> None:
    assert make_task(1, 7) == make_task(1, 7)
    assert len({make_task(1, i).question for i in range(100)} | {make_task(2, i).question for i in range(100)}) > 190


def test_right_answers_are_recognized() -> None:
    for index in range(400):
        task = make_task(3, index)
        replies = {
            "arithmetic": f"First 1 + 1 = 2.\nThe answer is {task.answer.value}.",
            "choice": f"The answer is {task.answer.value}) because it is.",
            "json": f"```json\n{task.answer.value}\n```",
        }
        assert task.is_correct(replies[task.kind]), task
        assert not task.is_correct("I do not know.")
        assert not task.is_correct("The answer is 1234567.")


def test_options_of_a_choice_differ() -> None:
    for index in range(1, 400, 4):
        options = re.findall(r"^[A-D]\) (.*)$", make_task(4, index).question, re.MULTILINE)
        assert len(set(options)) == 4


def test_methods_are_parsed() -> None:
    assert parse_method("single") == Method("single")
    assert parse_method("agree5") == parse_method(" agree 5 ") == Method("agree 5", "agree", 5)
    assert [parse_method(name).name for name in DEFAULT_METHODS] == list(DEFAULT_METHODS)
    assert parse_method("think256") == Method("think 256", max_thinking=256)
    for name in ("think", "think0", "agree", "agree1", "agree65", "vote5", "single5", "5", "", "agree²"):
        with pytest.raises(UsageError, match="is not a method"):
            parse_method(name)


def test_intervals() -> None:
    share = compute_wilson_interval(50, 100)
    assert share.value == 0.5
    assert share.low == pytest.approx(0.4038, abs=1e-3)
    assert share.high == pytest.approx(0.5962, abs=1e-3)
    assert compute_wilson_interval(0, 0) == Interval(0.0, 0.0, 1.0)
    assert compute_wilson_interval(10, 10).high == pytest.approx(1.0)
    worse, better = [True, False, False, False] * 10, [True, True, False, False] * 10
    difference = compare_paired(worse, better)
    assert difference.value == 0.25
    assert 0.1 < difference.low < 0.25 < difference.high < 0.45
    assert compare_paired([], []) == Interval(0.0, -1.0, 1.0)
    assert compare_paired(worse, worse) == Interval(0.0, 0.0, 0.0)


def test_mcnemar_p_values() -> None:
    assert compute_mcnemar_p([True] * 5, [True] * 5) == 1.0
    assert compute_mcnemar_p([False] * 10, [True] * 10) == pytest.approx(2 / 1024)
    assert compute_mcnemar_p([True, False], [False, True]) == 1.0


def test_table_has_a_row_for_each_method() -> None:
    results = [
        MethodResult(
            name=name, accuracy=Interval(0.5, 0.4, 0.6), accuracy_by_kind={"arithmetic": 0.5, "json": 0.25},
            difference=Interval(0.1, -0.1, 0.3), p_value=0.5, tokens_per_task=100.4, seconds_per_task=2.0,
            replies_per_task=1.0, decode_tps=50.0,
        )
        for name in ("single", "agree 5")
    ]  # fmt: skip
    report = ReasoningReport(
        model="/x/m.gguf", backend="cpu", n_threads=2, temperature=0.7, seed=1, n_tasks=10, methods=results, correct={}
    )
    lines = format_table(report).splitlines()
    assert lines[0] == "m.gguf, cpu, 2 threads, temperature 0.7, 10 tasks of seed 1"
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert "+10.0% (-10.0% to +30.0%)" in lines[-1]
