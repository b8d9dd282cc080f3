"""Tools of a request: keywords that cannot be enforced weaken the grammar of one tool, unless it is strict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer
from edgechat.serve.errors import ApiError
from edgechat.serve.tool_support import PreparedTools, prepare_tools
from tests.llama_cpp import read_templates
from tests.unit.serve.examples import chat_request


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def prepare(renderer: Renderer, template: str, parameters: dict[str, Any], **fields: Any) -> PreparedTools:
    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=read_templates().get(template, "{{ messages }}"), bos="", eos="", control_tokens=[],
        can_truncate=True, load_s=0.0,
    )  # fmt: skip
    builder = PromptBuilder(cast("EngineClient", None), renderer, properties)
    strict = fields.pop("strict", None)
    function = {"name": "f", "parameters": parameters} | ({"strict": strict} if strict is not None else {})
    body = chat_request(tools=[{"type": "function", "function": function}], **fields)
    return prepare_tools(
        builder, body, body.tools or [], must_call=fields.get("tool_choice") == "required", think=False
    )


UNENFORCEABLE: list[dict[str, Any]] = [
    {"not": {}}, {"type": "object", "propertyNames": {"type": "string"}}, {"properties": {"a": {"uniqueItems": True}}},
    {"properties": {"a": {"type": "string", "format": "path"}}}, {"properties": {"a": {"pattern": "(?=x)y"}}},
    {"properties": {"a": {"type": "integer", "maximum": (1 << 64) - 1}}}, {"minProperties": 2},
    {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"dependentRequired": {"a": ["b"]}},
    {"properties": {"a": {"$ref": "https://example.com/schema.json"}}}, {"properties": {"a": {"contains": {}}}},
]  # fmt: skip


@pytest.mark.parametrize("template", ["Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"])
@pytest.mark.parametrize("parameters", UNENFORCEABLE, ids=lambda parameters: str(parameters)[:40])
def test_keyword_that_cannot_be_enforced_does_not_refuse_the_request(
    renderer: Renderer, template: str, parameters: dict[str, Any]
) -> None:
    prepared = prepare(renderer, template, parameters)
    assert prepared.tool_grammar is not None or prepared.rules
    if prepared.tool_grammar is not None:  # the model still reads the whole schema
        assert prepared.options.tools[0]["function"]["parameters"] == parameters


def test_strict_tool_is_refused_if_its_schema_cannot_be_enforced(renderer: Renderer) -> None:
    parameters = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    with pytest.raises(ApiError, match="not cannot be enforced, and the function f is strict"):
        prepare(renderer, "Qwen-Qwen3-0.6B", parameters, strict=True)
    plain = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert prepare(renderer, "Qwen-Qwen3-0.6B", plain, strict=True).tool_grammar is not None


def test_several_calls_are_allowed_only_if_the_template_takes_them_back(renderer: Renderer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert prepare(renderer, "Qwen-Qwen3-0.6B", schema).options.allow_parallel
    assert not prepare(renderer, "Qwen-Qwen3-0.6B", schema, parallel_tool_calls=False).options.allow_parallel
    assert not prepare(renderer, "meta-llama-Llama-3.2-3B-Instruct", schema).options.allow_parallel


@pytest.mark.parametrize("template", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "openai-gpt-oss-120b"])
def test_required_call_has_a_grammar_without_triggers(renderer: Renderer, template: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    prepared = prepare(renderer, template, schema, tool_choice="required")
    assert prepared.tool_grammar is not None
    assert not prepared.tool_grammar.triggers
