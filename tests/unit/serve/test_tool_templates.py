"""Tools of a request with every chat template that llama.cpp collects."""

from __future__ import annotations

from collections.abc import Iterator

import llguidance
import pytest

from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.runtime.triggered_grammar import convert_tool_grammar
from tests.unit.serve.tool_requests import TEMPLATES, RecordingEngine, make_builder, prepare_request

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def to_lark(grammar: ToolGrammar | str) -> str:
    return convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"


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
