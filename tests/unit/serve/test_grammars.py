"""Grammars accept valid tool calls, and reject everything else."""

from __future__ import annotations

from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.tool_formats import CALL_START, format_calls
from edgechat.serve import grammars
from tests.grammars import allows
from tests.unit.serve.examples import TIME, WEATHER


def tool_grammar(*, required: bool = False, parallel: bool = True) -> str:
    rules = grammars.make_tool_call_rules([WEATHER, TIME], must_call=required, allow_parallel=parallel)
    return add_reasoning_rules(rules, None, "content", think=True)


def test_only_calls_that_match_a_tool_are_allowed() -> None:
    weather, time = ("get_weather", '{"city": "Paris"}'), ("get_time", "{}")
    for grammar in (tool_grammar(), tool_grammar(required=True)):
        assert allows(grammar, format_calls([weather]))
        assert allows(grammar, format_calls([time, weather]))
        assert not allows(grammar, format_calls([("get_weather", '{"city": 5}')]))
        assert not allows(grammar, format_calls([("get_news", "{}")]))
    assert not allows(tool_grammar(parallel=False), format_calls([weather, time]))
    for text in ("", "It is sunny.", "a < b, [1]"):
        assert allows(tool_grammar(), text)
        assert not allows(tool_grammar(required=True), text)
    assert allows(tool_grammar(), "Let me see. " + format_calls([weather]))
    assert not allows(tool_grammar(), CALL_START + "whatever")
