"""Tools of a request: keywords that cannot be enforced weaken the grammar of one tool, unless it is strict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import llguidance
import pytest

from edgechat.engine.client import EngineClient
from edgechat.engine.protocol import Loaded
from edgechat.errors import GrammarError
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.tool_formats import format_calls
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.runtime.triggered_grammar import convert_tool_grammar
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import FREE_TEXT, OutputFormat
from edgechat.serve.tool_schemas import WEAKENINGS
from edgechat.serve.tool_support import PreparedTools, check_tools, prepare_tools
from tests.grammars import allows
from tests.llama_cpp import read_templates
from tests.unit.serve.examples import chat_request


def to_lark(grammar: ToolGrammar | str) -> str:
    return convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def prepare(
    renderer: Renderer, template: str, parameters: dict[str, Any], output_format: OutputFormat = FREE_TEXT,
    **fields: Any,
) -> PreparedTools:  # fmt: skip
    properties = Loaded(
        id=0, backend="", n_ctx=4096, n_ctx_train=4096, n_threads=1, n_params=1, n_vocab=2, size_bytes=1,
        chat_template=read_templates().get(template, "{{ messages }}"), bos="", eos="", control_tokens=[],
        can_truncate=True, load_s=0.0,
    )  # fmt: skip
    builder = PromptBuilder(cast("EngineClient", None), renderer, properties)
    strict = fields.pop("strict", None)
    function = {"name": "f", "parameters": parameters} | ({"strict": strict} if strict is not None else {})
    body = chat_request(tools=[{"type": "function", "function": function}], **fields)
    check_tools(body.tools or [])
    return prepare_tools(
        builder, body, body.tools or [], must_call=fields.get("tool_choice") == "required", think=False,
        output_format=output_format,
    )  # fmt: skip


UNENFORCEABLE: list[dict[str, Any]] = [
    {"not": {}}, {"type": "object", "propertyNames": {"type": "string"}}, {"properties": {"a": {"uniqueItems": True}}},
    {"properties": {"a": {"type": "string", "format": "path"}}}, {"properties": {"a": {"pattern": "(?=x)y"}}},
    {"properties": {"a": {"type": "integer", "maximum": (1 << 64) - 1}}}, {"minProperties": 2},
    {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"dependentRequired": {"a": ["b"]}},
    {"properties": {"a": {"type": "king"}}}, {"properties": {"a": {"enum": []}}},
    {"properties": {"a": {"type": "integer", "minimum": 1e30}}},
    {"properties": {"a": {"$ref": "#/$defs/none"}}}, {"$ref": "#"}, {"x-guidance": {}}, {"minProperties": 3},
    {"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 4}}}, {"patternProperties": {"(": {}}},
    {"properties": {"a": {"$ref": "https://example.com/schema.json"}}}, {"properties": {"a": {"contains": {}}}},
]  # fmt: skip


@pytest.mark.parametrize("template", ["Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"])
@pytest.mark.parametrize("parameters", UNENFORCEABLE, ids=lambda parameters: str(parameters)[:40])
def test_keyword_that_cannot_be_enforced_does_not_refuse_the_request(
    renderer: Renderer, template: str, parameters: dict[str, Any]
) -> None:
    prepared = prepare(renderer, template, parameters)
    errors = [llguidance.LLMatcher.validate_grammar(to_lark(grammar)) for grammar in prepared.grammars]
    assert "" in errors
    if prepared.options.tools:  # the model still reads the whole schema
        assert prepared.options.tools[0]["function"]["parameters"] == parameters


@pytest.mark.parametrize("keyword", [{"uniqueItems": True}, {"contains": {}}, {"if": {}}, {"not": {"const": 1}}])
def test_keyword_that_cannot_be_enforced_leaves_the_others_in_force(
    renderer: Renderer, keyword: dict[str, Any]
) -> None:
    items = {"type": "array", "items": {"type": "integer"}, "maxItems": 3} | keyword
    parameters = {"type": "object", "properties": {"a": items, "b": {"type": "string"}}, "required": ["a"]}
    for template, write in (
        ("Qwen-Qwen3-0.6B", '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call>'.format),
        ("google-gemma-2-2b-it", lambda arguments: format_calls([("f", arguments)])),
    ):
        grammars = map(to_lark, prepare(renderer, template, parameters).grammars)
        grammar = next(g for g in grammars if not llguidance.LLMatcher.validate_grammar(g))
        assert allows(grammar, write('{"a": [1, 2, 3], "b": "x"}'))
        assert not allows(grammar, write('{"a": [1, 2, 3, 4]}'))
        assert not allows(grammar, write('{"a": [1], "c": 2}'))


@pytest.mark.parametrize("weaken", WEAKENINGS[1:-1])
def test_weaker_schema_of_a_closed_object_is_closed(weaken: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    assert weaken(schema)["additionalProperties"] is False
    combined = schema | {"allOf": [{"properties": {"b": {}}}]}
    weaker = weaken(combined)
    assert "allOf" in weaker or "additionalProperties" not in weaker


def test_tool_with_a_simple_schema_has_one_grammar(renderer: Renderer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], "title": "A"}}, "required": ["a"]}
    for template in ("Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"):
        assert len(prepare(renderer, template, schema).grammars) == 1


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
    assert len(prepare(renderer, "Qwen-Qwen3-0.6B", plain, strict=True).grammars) == 1


def test_several_calls_are_allowed_only_if_the_template_takes_them_back(renderer: Renderer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert prepare(renderer, "Qwen-Qwen3-0.6B", schema).options.allow_parallel
    assert not prepare(renderer, "Qwen-Qwen3-0.6B", schema, parallel_tool_calls=False).options.allow_parallel
    assert not prepare(renderer, "meta-llama-Llama-3.2-3B-Instruct", schema).options.allow_parallel


@pytest.mark.parametrize("template", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "openai-gpt-oss-120b"])
def test_required_call_has_a_grammar_without_triggers(renderer: Renderer, template: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    (grammar,) = prepare(renderer, template, schema, tool_choice="required").grammars
    assert isinstance(grammar, ToolGrammar)
    assert not grammar.triggers


SUM = OutputFormat('%json {"type": "object", "properties": {"sum": {"type": "integer"}}}', "response_format")


@pytest.mark.parametrize(
    ("template", "call"),
    [
        ("Qwen-Qwen3-0.6B", '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>'),
        ("google-gemma-2-2b-it", format_calls([("f", '{"a": "x"}')])),
    ],
)
def test_reply_without_a_call_has_the_output_format(renderer: Renderer, template: str, call: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    grammar = to_lark(prepare(renderer, template, schema, output_format=SUM).grammars[0])
    assert allows(grammar, call)
    assert allows(grammar, '{"sum":5}')
    assert not allows(grammar, "five")
    grammar = to_lark(prepare(renderer, template, schema, output_format=SUM, tool_choice="required").grammars[0])
    assert allows(grammar, call)
    assert not allows(grammar, '{"sum":5}')


def test_output_format_beside_calls_of_unknown_beginning_is_refused(renderer: Renderer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    with pytest.raises(ApiError, match="response_format: this model's tool calls cannot be combined"):
        prepare(renderer, "openai-gpt-oss-120b", schema, output_format=SUM)


def test_schemas_of_all_tools_together_are_limited() -> None:
    parameters = {"properties": {"a": {"enum": ["x" * 100] * 1000}}}
    function = {"name": "f", "parameters": parameters}
    tools = chat_request(tools=[{"type": "function", "function": function}] * 10).tools or []
    check_tools(tools[:9])
    with pytest.raises(GrammarError, match="tools: 2060641 bytes of JSON schema; the limit is 1048576"):
        check_tools([*tools, *tools])
