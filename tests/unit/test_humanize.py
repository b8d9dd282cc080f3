"""Sizes, rates and durations for people."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.chat.events import TurnsDropped, format_notice
from edgechat.errors import PlanError
from edgechat.humanize import format_day, format_duration, format_rate, format_size, shorten
from edgechat.models.instances import RunningInstance
from edgechat.models.resources import describe_instance
from edgechat.planner.machine import Machine
from edgechat.planner.plan import plan
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, evaluate
from edgechat.planner.report import format_row_lines, make_plan_row
from tests.unit.planner.profiles import llama

FREE_BYTES = 23_765_000_000


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (95_600_000, "96 MB"),
        (999_600_000, "1.00 GB"), (FREE_BYTES, "23.77 GB"), (2 * 10**12, "2.00 TB"),
    ],
)  # fmt: skip
def test_sizes_are_decimal(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text
    assert format_rate(n_bytes) == f"{text}/s"


@given(st.integers(0, 10**14))
def test_size_is_within_half_of_its_last_digit(n_bytes: int) -> None:
    number, unit = format_size(n_bytes).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    last_digit = 0.01 if "." in number else 1.0
    assert abs(float(number) * factor - n_bytes) <= 0.501 * last_digit * factor


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_available_memory_reads_the_same_in_every_message() -> None:
    profile = llama(weights=40 << 30)
    machine = Machine(available_bytes=FREE_BYTES)
    with pytest.raises(PlanError) as refused:
        plan(profile, machine)
    candidate = Candidate(name="a", quant="Q4_K_M", profile=profile, quality=quality("Q4_K_M", 10**9))
    evaluation = evaluate(candidate, machine)
    texts = [
        str(refused.value),
        "\n".join(format_row_lines(make_plan_row(evaluation, None), FREE_BYTES)),
        describe_instance(RunningInstance(pid=1, started_at=0.0, model_path="a.gguf", total_bytes=FREE_BYTES)),
    ]
    for text in texts:
        assert "23.77 GB" in text
        assert not re.search(r"[KMG]iB", text)
    assert evaluation.verdict == f"needs at least {format_size(evaluation.memory.total)}"


@given(st.text(max_size=300), st.integers(1, 200))
@example("0…", 1)
def test_shortened_text_keeps_its_start_and_end(text: str, max_chars: int) -> None:
    shortened = shorten(text, max_chars)
    assert len(shortened) == min(len(text), max_chars)
    if len(text) > max_chars:
        marks = [i for i, character in enumerate(shortened) if character == "…"]  # the text can have some, too
        assert any(text.startswith(shortened[:i]) and text.endswith(shortened[i + 1 :]) for i in marks)
    else:
        assert shortened == text


def test_notice_about_one_message_is_singular() -> None:
    assert (
        format_notice(TurnsDropped(n_messages=1, context_start_id="m"))
        == "The context is full: the model no longer sees the first message."
    )
    assert (
        format_notice(TurnsDropped(n_messages=2, context_start_id="m"))
        == "The context is full: the model no longer sees the first 2 messages."
    )


def test_day_has_a_year_only_if_it_is_another_one() -> None:
    at_ms = 1_762_171_200_000  # 3 November 2025, at noon
    assert format_day(at_ms, dt.date(2025, 12, 31)) == "3 November"
    assert format_day(at_ms, dt.date(2026, 1, 1)) == "3 November 2025"


@pytest.mark.parametrize("at_ms", [0, 1 << 62, -(1 << 62), 10**400])
def test_unknown_day_is_empty(at_ms: int) -> None:
    assert format_day(at_ms, dt.date(2026, 1, 1)) == ""
