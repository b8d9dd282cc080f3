"""Grammars accept valid tool calls and JSON, and reject everything else."""

from __future__ import annotations

import time
from typing import Any

import llguidance
import pytest

from edgechat.errors import GrammarError
from edgechat.prompt.reasoning import REASONING_FORMATS, ReasoningFormat
from edgechat.prompt.tool_formats import CALL_START, format_calls
from edgechat.serve import grammars
from tests.unit.serve.examples import TIME, WEATHER


class ByteTokenizer:
    """A vocabulary of the 256 bytes and an end-of-generation token."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([b]) for b in range(256)), b"\xff<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(ByteTokenizer()), slices=[])


def allows(grammar: str, text: str) -> bool:
    """Return whether the grammar accepts `text` as a complete reply."""
    matcher = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def tool_grammar(*, required: bool = False, parallel: bool = True) -> str:
    rules = grammars.make_tool_call_rules([WEATHER, TIME], must_call=required, allow_parallel=parallel)
    return grammars.add_reasoning_rules(rules, None, "content", think=True)


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


def test_property_names_that_restrict_nothing_are_dropped() -> None:
    names = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}
    properties = {"propertyNames": {"anyOf": [names, {"type": "null"}]}, "data": {"enum": [{"propertyNames": {}}]}}
    rule = grammars.make_json_rule({"type": "object", "properties": properties, "required": list(properties)}, "schema")
    assert allows(f"start: {rule}", '{"propertyNames": {"a": 1}, "data": {"propertyNames": {}}}')
    assert not allows(f"start: {rule}", '{"propertyNames": {"a": "b"}, "data": {"propertyNames": {}}}')
    assert '"propertyNames"' in grammars.make_json_rule({"propertyNames": {"pattern": "a"}}, "schema")


@pytest.mark.parametrize("reasoning_format", REASONING_FORMATS, ids=lambda f: f.start_tag)
def test_reasoning_is_free_and_content_matches_the_schema(reasoning_format: ReasoningFormat) -> None:
    rule = grammars.make_json_rule({"type": "integer"}, "response_format")
    start_tag, end_tag = reasoning_format.start_tag, reasoning_format.end_tag
    content_prefix = reasoning_format.content_prefix
    in_reasoning = grammars.add_reasoning_rules(rule, reasoning_format, "reasoning", think=True)
    assert allows(in_reasoning, f"hm {{ < {end_tag}{content_prefix}7")
    assert not allows(in_reasoning, f"hm{end_tag}{content_prefix}seven")
    at_start = grammars.add_reasoning_rules(rule, reasoning_format, "start", think=True)
    assert allows(at_start, f"{start_tag}\nhm\n{end_tag}\n\n{content_prefix}7")
    assert allows(at_start, f"{content_prefix}7")
    assert not allows(at_start, "hm 7")
    assert allows(grammars.add_reasoning_rules(rule, reasoning_format, "start", think=False), "7")


def test_min_properties_is_refused_unless_the_properties_are_required() -> None:
    for schema in ({"type": "object", "minProperties": 2}, {"items": {"minProperties": 3, "required": ["a", "b"]}}):
        with pytest.raises(GrammarError, match="minProperties"):
            grammars.make_json_rule(schema, "response_format")
    supported = {"type": "object", "minProperties": 2, "required": ["a", "b"], "properties": {"a": {}, "b": {}}}
    assert grammars.make_json_rule(supported, "response_format")


@pytest.mark.parametrize("container", ["items", "properties", "enum", "required"])
def test_large_schema_is_refused_without_a_walk_through_it(container: str) -> None:
    values = {str(i): {} for i in range(300_000)} if container == "properties" else [{}] * 300_000
    started_at = time.thread_time()
    with pytest.raises(GrammarError, match="bytes of JSON schema; the limit is 262144"):
        grammars.make_json_rule({container: values}, "response_format")
    assert time.thread_time() - started_at < 0.2  # a walk takes over 0.4 s


def test_long_keys_do_not_multiply_the_time() -> None:
    def measure(key: str) -> float:
        schema: dict[str, Any] = {"properties": {key: {"anyOf": [{}] * 30_000}}}
        durations_s = []
        for _ in range(5):
            started_at = time.thread_time()
            grammars.make_json_rule(schema, "response_format")
            durations_s.append(time.thread_time() - started_at)
        return min(durations_s)

    assert measure("k" * 150_000) < 2 * measure("k")  # 3.4 times as long with a copy of the key for every item


def test_path_of_an_unsupported_keyword_is_complete() -> None:
    bound = {"maximum": 1 << 60}
    for schema, path in (
        ({"properties": {"a": {"items": [{}, bound]}}}, "tools.properties.a.items[1]"),
        ({"$defs": {"x.y": {"not": {"anyOf": [bound]}}}}, "tools.$defs.x.y.not.anyOf[0]"),
        (bound, "tools"),
    ):
        with pytest.raises(GrammarError) as caught:
            grammars.make_json_rule(schema, "tools")
        assert str(caught.value) == f"{path}: maximum beyond {1 << 53} is not supported."


def test_nesting_is_limited() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="nesting of more than 64 levels is not supported"):
        grammars.make_json_rule(schema, "response_format")
