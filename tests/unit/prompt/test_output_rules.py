"""Grammars of replies with reasoning: the reasoning is free, and the content matches the rules."""

from __future__ import annotations

import pytest

from edgechat.prompt.json_schemas import make_json_rule
from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.reasoning import REASONING_FORMATS, ReasoningFormat
from tests.grammars import allows


@pytest.mark.parametrize("reasoning_format", REASONING_FORMATS, ids=lambda f: f.start_tag)
def test_reasoning_is_free_and_content_matches_the_schema(reasoning_format: ReasoningFormat) -> None:
    rule = make_json_rule({"type": "integer"}, "response_format")
    start_tag, end_tag = reasoning_format.start_tag, reasoning_format.end_tag
    content_prefix = reasoning_format.content_prefix
    in_reasoning = add_reasoning_rules(rule, reasoning_format, "reasoning", think=True)
    assert allows(in_reasoning, f"hm {{ < {end_tag}{content_prefix}7")
    assert not allows(in_reasoning, f"hm{end_tag}{content_prefix}seven")
    assert allows(in_reasoning, f"hm{end_tag}\n\n{content_prefix}7")
    assert not allows(in_reasoning, f"hm{end_tag}\f{content_prefix}7")  # a JSON parser would not skip it
    at_start = add_reasoning_rules(rule, reasoning_format, "start", think=True)
    assert allows(at_start, f"{start_tag}\nhm\n{end_tag}\n\n{content_prefix}7")
    assert allows(at_start, f"{content_prefix}7")
    assert not allows(at_start, "hm 7")
    assert allows(add_reasoning_rules(rule, reasoning_format, "start", think=False), "7")
