"""Tools of a request with every chat template that llama.cpp collects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.runtime.triggered_grammar import convert_tool_grammar
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import OutputFormat
from tests.unit.serve.test_grammars import TOKENIZER
from tests.unit.serve.tool_requests import TEMPLATES, RecordingEngine, make_builder, prepare_request

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def to_lark(grammar: ToolGrammar | str) -> str:
    return convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"


def start(grammar: ToolGrammar | str) -> llguidance.LLMatcher:
    """Return a matcher of the grammar at the beginning of an output."""
    matcher = llguidance.LLMatcher(TOKENIZER, to_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    if isinstance(grammar, ToolGrammar) and not (grammar.thinking_ends or grammar.call_starts):
        prompt_end = list(grammar.prompt_end.encode())
        assert matcher.try_consume_tokens(prompt_end) == len(prompt_end)
    return matcher


def is_complete(matcher: llguidance.LLMatcher, text: str) -> bool:
    """Return whether `text` is a complete output."""
    copy = matcher.deep_copy()
    return copy.try_consume_tokens(list(text.encode())) == len(text.encode()) and copy.is_accepting()


REQUIRED_OR_FORMAT: list[dict[str, Any]] = [
    {"tool_choice": "required"}, {"tool_choice": "required", "parallel_tool_calls": False},
    {"output_format": OutputFormat('%json {"type": "object"}', "response_format")},
]  # fmt: skip
UNUSUAL_SCHEMAS: list[object] = [
    True, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"type": "foo"}, {"enum": []}, {"type": "array"},
    {"type": ["string", "null"]}, {"not": {}}, {"$ref": "https://example.com/schema.json"},
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_unusual_schema_of_one_tool_does_not_refuse_the_request(renderer: Renderer, template: str) -> None:
    engine = RecordingEngine()
    builder = make_builder(renderer, template, engine)
    for schema in UNUSUAL_SCHEMAS:
        parameters = {"type": "object", "properties": {"city": schema}}
        prepared = prepare_request(builder, {"odd": parameters, "good": CITY})
        prompt = builder.build([PromptMessage("user", "Weather?")], prepared.options)
        assert "Weather?" in engine.text
        assert prompt.reply_format.has_native_tools == builder.has_native_tools, schema
        if prepared.options.tools:  # the model still reads the whole schema
            assert prepared.options.tools[0]["function"]["parameters"] == parameters
        if prepared.grammars:
            assert "" in [llguidance.LLMatcher.validate_grammar(to_lark(g)) for g in prepared.grammars], schema


@pytest.mark.parametrize("template", TEMPLATES)
def test_required_call_cannot_be_left_out(renderer: Renderer, template: str) -> None:
    builder = make_builder(renderer, template)
    for think, fields in itertools.product((False, True), REQUIRED_OR_FORMAT):
        try:
            grammars = prepare_request(builder, {"f": CITY, "g": CITY}, think=think, **fields).grammars
        except ApiError:  # this model's calls cannot be combined with an output format
            assert "tool_choice" not in fields
            continue
        assert grammars
        for grammar in grammars:
            matcher = start(grammar)
            assert not matcher.is_accepting()
            end_tags = grammar.thinking_ends[:1] if isinstance(grammar, ToolGrammar) else []
            for text in ("", " ", "\n\n", *(f"{tag}{space}" for tag in end_tags for space in ("", "\n\n", " \n" * 20))):
                assert not is_complete(matcher, text), (fields, text)
