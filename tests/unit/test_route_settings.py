"""The setting `route`: valid tables, clear reasons against others, and the choice by rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import config, paths
from edgechat.config import Settings, with_overrides
from edgechat.route_settings import RoutedMessage, RouteRule, RouteSettings, choose_side, parse_route

PAIR = {"small": "starter", "large": "box/big"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (5, "must be a table such as [route]"),
        ({}, "must be a table such as"),
        ({**PAIR, "smal": "x"}, "must be a table such as"),
        ({**PAIR, "large": "route"}, "not the route itself"),
        ({**PAIR, "small": " "}, "must have the name of a model in small"),
        ({**PAIR, "large": "starter"}, "must name two different models, not 'starter' twice"),
        ({**PAIR, "min_logprob": 0.5}, "must have a min_logprob between -100 and 0, not 0.5"),
        ({**PAIR, "min_logprob": float("nan")}, "must have a min_logprob"),
        ({**PAIR, "rules": [{"use": "large"}]}, "must have a condition in rule 1"),
        ({**PAIR, "rules": [{"use": "huge", "min_chars": 1}]}, "must be a table such as"),
        ({**PAIR, "rules": [{"use": "large", "min_chars": 9, "max_chars": 1}]}, "min_chars at most max_chars"),
        ({**PAIR, "rules": [{"use": "large", "min_chars": 1}] * 101}, "at most 100 rules, not 101"),
    ],
)
def test_invalid_table_has_a_reason(table: Any, words: str) -> None:
    route, problem = parse_route(table)
    assert route is None
    assert words in problem


def test_first_rule_that_applies_decides() -> None:
    rules = [
        {"use": "large", "attachments": True},
        {"use": "small", "max_chars": 20},
        {"use": "large", "persona": "coder"},
        {"use": "large", "min_chars": 1000},
    ]
    route, problem = parse_route({**PAIR, "rules": rules})
    assert route is not None, problem

    def choose(**facts: Any) -> tuple[str, str, bool]:
        choice = choose_side(route, RoutedMessage(**facts))
        return choice.side, choice.reason, choice.is_final

    assert choose(n_chars=5, has_attachments=True) == ("large", "rule 1", True)
    assert choose(n_chars=20) == ("small", "rule 2", True)
    assert choose(n_chars=21, persona="coder") == ("large", "rule 3", True)
    assert choose(n_chars=1000) == ("large", "rule 4", True)
    assert choose(n_chars=999) == ("small", "", False)
    assert choose(n_chars=5, is_hard=True) == ("large", "/hard", True)


def test_without_checks_nothing_is_escalated() -> None:
    route = RouteSettings(small="a", large="b", dont_know=False)
    assert choose_side(route, RoutedMessage(n_chars=5)).is_final


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_lengths_are_inclusive(low: int, high: int, n_chars: int) -> None:
    route = RouteSettings(small="a", large="b", rules=(RouteRule(use="large", min_chars=low, max_chars=high),))
    assert (choose_side(route, RoutedMessage(n_chars=n_chars)).side == "large") == (low <= n_chars <= high)


def test_table_of_the_settings_file_is_read(home: object) -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('[route]\nsmall = "a"\nlarge = "b"\n[[route.rules]]\nuse = "large"\nmin_chars = 5\n')
    settings, problems = config.load()
    assert problems == []
    assert settings.route["rules"] == [{"use": "large", "min_chars": 5}]
    paths.config_file().write_text('[route]\nsmall = "a"\nlarge = "a"\n')
    settings, problems = config.load()
    assert settings.route == {}
    assert "must name two different models" in str(problems[0])


def test_conversation_cannot_change_the_route() -> None:
    settings = Settings(route=PAIR)
    assert with_overrides(settings, {"route": {"small": "a", "large": "thief/x"}}).route == PAIR
