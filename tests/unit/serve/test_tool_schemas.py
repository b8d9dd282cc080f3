"""Schemas of tools: malformed ones, required properties that are not described, and strict tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.prompt.call_enforcement import CallEnforcement
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.tool_formats import format_calls
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.runtime.triggered_grammar import convert_tool_grammar
from edgechat.serve.errors import ApiError
from edgechat.serve.tool_schemas import WEAKENINGS, close_objects, declare_required, is_enforced, is_simple
from edgechat.serve.tool_support import check_tools
from tests.grammars import allows
from tests.unit.serve.examples import chat_request
from tests.unit.serve.tool_requests import make_builder, prepare_request


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    process = Renderer()
    yield process
    process.close()


def check(parameters: Any, **fields: Any) -> None:
    tools = [{"type": "function", "function": {"name": "good"}}]
    tools.append({"type": "function", "function": {"name": "f", "parameters": parameters, **fields}})
    check_tools(chat_request(tools=tools).tools or [])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "tools[1].function.parameters: must be an object or null, not an array."),
        ("object", "tools[1].function.parameters: must be an object or null, not a string."),
        (True, "tools[1].function.parameters: must be an object or null, not a boolean."),
        ({"type": "string"}, 'tools[1].function.parameters.type: must be "object", because arguments have names.'),
        ({"type": ["array", "null"]}, 'tools[1].function.parameters.type: must be "object"'),
        ({"type": "king"}, 'tools[1].function.parameters.type: must be "object"'),
        ({"properties": [{"name": "a"}]}, "tools[1].function.parameters.properties: must be an object, not an array."),
        (
            {"properties": {"a": "string"}},
            "tools[1].function.parameters.properties.a: must be an object, not a string.",
        ),
        (
            {"properties": {"a": {"anyOf": [{}, 5]}}},
            "tools[1].function.parameters.properties.a.anyOf[1]: must be an object, not an integer.",
        ),
        ({"properties": {"a": {"items": "x"}}}, "tools[1].function.parameters.properties.a.items: must be an object"),
        ({"$defs": []}, "tools[1].function.parameters.$defs: must be an object, not an array."),
        ({"properties": True}, "tools[1].function.parameters.properties: must be an object, not a boolean."),
        ({"$defs": False}, "tools[1].function.parameters.$defs: must be an object, not a boolean."),
        ({"anyOf": True}, "tools[1].function.parameters.anyOf: must be an array, not a boolean."),
        ({"anyOf": {}}, "tools[1].function.parameters.anyOf: must be an array, not an object."),
        ({"prefixItems": False}, "tools[1].function.parameters.prefixItems: must be an array, not a boolean."),
        ({"required": "a"}, "tools[1].function.parameters.required: must be an array, not a string."),
        ({"required": [1]}, "tools[1].function.parameters.required[0]: must be a string, not an integer."),
        ({"type": 7}, "tools[1].function.parameters.type: must be a string or an array, not an integer."),
        (
            {"properties": {"a": {"enum": 5}}},
            "tools[1].function.parameters.properties.a.enum: must be an array, not an integer.",
        ),
    ],
)
def test_parameters_that_are_no_schema_of_an_object_are_refused(parameters: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        check(parameters)
    assert str(caught.value).startswith(message)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strng"}, 'the type "strng" cannot be enforced, and the function f is strict'),
        ({"type": ["string", "any"]}, 'the type "any" cannot be enforced'),
        ({"type": []}, "an empty list of types cannot be enforced"),
        ({"items": {"minLength": "5"}}, r"minLength \(must be an integer, not a string\) cannot be enforced"),
        ({"exclusiveMinimum": True}, r"exclusiveMinimum \(must be a number, not a boolean\) cannot be enforced"),
        ({"pattern": 5}, r"pattern \(must be a string, not an integer\) cannot be enforced"),
    ],
)
def test_malformed_keyword_is_an_error_only_in_a_strict_tool(schema: dict[str, Any], message: str) -> None:
    check({"properties": {"a": schema}})
    with pytest.raises(ApiError, match=message):
        check({"properties": {"a": schema}}, strict=True)


@pytest.mark.parametrize(
    "parameters",
    [
        None, {}, {"type": None}, {"type": "object", "properties": None}, {"type": ["object", "null"]},
        {"properties": {"a": True, "b": {"items": None}}}, {"properties": {"enum": {"enum": ["properties"]}}},
    ],
)  # fmt: skip
def test_parameters_may_be_absent(renderer: Renderer, parameters: Any) -> None:
    check(parameters)
    for template in ("Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"):
        assert prepare_request(make_builder(renderer, template), {"f": parameters}, tool_choice="required").grammars


@pytest.mark.parametrize("strict", [False, True])
def test_null_keywords_count_as_absent(renderer: Renderer, strict: bool) -> None:
    nulls = dict.fromkeys(("enum", "required", "items", "minLength", "anyOf", "format", "$defs"))
    parameters = {"type": "object", "properties": {"a": {"type": "string"} | nulls, "b": {"const": None}}}
    clean = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"const": None}}}
    builder = make_builder(renderer, "Qwen-Qwen3-0.6B")
    expected = prepare_request(builder, {"f": clean}, strict=strict, tool_choice="required")
    assert prepare_request(builder, {"f": parameters}, strict=strict, tool_choice="required") == expected
    assert prepare_request(builder, {"f": parameters | nulls}, strict=strict, tool_choice="required") == expected


def test_required_property_without_a_description_has_any_value(renderer: Renderer) -> None:
    outer = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]}
    nested = {"type": "object", "properties": {"o": outer}, "required": ["o"]}
    call = '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call>'
    for template in ("Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"):
        builder = make_builder(renderer, template)
        for parameters, wrap in ((outer, "{}"), (nested, '{{"o": {}}}')):
            (grammar, *_) = prepare_request(builder, {"f": parameters}, tool_choice="required").grammars
            lark = convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"
            assert allows(lark, call.format(wrap.format('{"a": "x", "b": 5}')))
            assert allows(lark, call.format(wrap.format('{"a": "x", "b": {"c": null}}')))
            assert not allows(lark, call.format(wrap.format('{"a": "x"}')))


def test_required_property_of_a_strict_tool_must_be_described() -> None:
    closed = {"type": "object", "properties": {"a": {}}, "required": ["a", "b"], "additionalProperties": False}
    check(closed)
    with pytest.raises(ApiError, match="the required property b, which is not in properties, cannot be enforced"):
        check(closed, strict=True)
    with pytest.raises(ApiError, match="the required property b, which is not in properties, cannot be enforced"):
        check({"properties": {"o": {"anyOf": [closed, {"type": "null"}]}}}, strict=True)


def test_properties_of_combined_schemas_are_not_declared_again() -> None:
    for schema in (
        {"type": "object", "allOf": [{"properties": {"a": {}}}], "required": ["a"]},
        {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"$ref": "#/$defs/x", "required": ["a"], "$defs": {"x": {"type": "object", "properties": {"a": {}}}}},
    ):
        assert declare_required(schema) == schema
    typed = {"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}}
    assert declare_required(typed)["properties"] == {"a": {"type": "integer"}}


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = OPEN | {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (OPEN, CLOSED),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (OPEN | {"additionalProperties": True}, OPEN | {"additionalProperties": True}),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        ({"$defs": {"x": OPEN}, "anyOf": [{"$ref": "#/$defs/x"}]},
         {"$defs": {"x": CLOSED}, "anyOf": [{"$ref": "#/$defs/x"}]}),
    ],
)  # fmt: skip
def test_object_has_only_declared_properties_unless_its_schema_says_otherwise(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert close_objects(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"}, OPEN | {"allOf": [{"required": ["b"]}]},
        {"allOf": [OPEN, {"$ref": "#/$defs/x"}], "$defs": {"x": OPEN}}, OPEN | {"patternProperties": {"b": OPEN}},
        OPEN | {"anyOf": [{"properties": {"b": {}}}]}, True, None,
    ],
)  # fmt: skip
def test_objects_of_combined_schemas_stay_open(schema: Any) -> None:
    assert close_objects(schema) == schema


def test_model_invents_no_argument(renderer: Renderer) -> None:
    call = '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call>'
    for template in ("Qwen-Qwen3-0.6B", "google-gemma-2-2b-it"):
        builder = make_builder(renderer, template)
        (grammar, *_) = prepare_request(builder, {"f": OPEN}, tool_choice="required").grammars
        lark = convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"
        assert allows(lark, call.format('{"a": 1}'))
        assert not allows(lark, call.format('{"b": 1}'))
        assert not allows(lark, call.format('{"a": 1, "b": 1}'))
        for parameters in (None, {}, {"type": "object", "properties": {}}):
            (grammar, *_) = prepare_request(builder, {"f": parameters}, tool_choice="required").grammars
            lark = convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"
            assert allows(lark, call.format("{}"))
            assert not allows(lark, call.format('{"a": 1}'))


EVERYTHING = CallEnforcement(*[True] * len(CallEnforcement._fields))
RAW_TEXT = EVERYTHING._replace(strings=False)


@pytest.mark.parametrize(
    ("schema", "in_json", "in_raw_text"),
    [
        ({"type": "string"}, True, True),
        ({"type": ["string", "null"], "description": "x"}, True, True),
        ({"type": "string", "enum": ["a"]}, True, False),
        ({"const": "a"}, True, False),
        ({"type": "string", "pattern": "a"}, True, False),
        ({"type": "string", "minLength": 2}, True, False),
        ({"type": "string", "minLength": 2, "pattern": "a"}, False, False),
        ({"type": "string", "format": "date"}, True, False),
        ({"type": "string", "format": "email"}, False, False),
        ({"$ref": "#/$defs/x"}, True, False),
        ({"type": "integer", "enum": [1, 2]}, True, True),
        ({"type": "integer", "minimum": 1}, True, True),
        ({"type": "number", "minimum": 1}, False, False),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, True, True),
        ({"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}, True, False),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, False, False),
        ({"type": "array", "items": {"type": "string", "enum": ["a"]}, "minItems": 1}, True, True),
        ({"type": "object", "properties": {"a": {"enum": ["a"]}}, "required": ["a"]}, True, True),
        ({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, False, False),
    ],
)
def test_keywords_are_enforced_by_the_format_of_a_model(
    schema: dict[str, Any], in_json: bool, in_raw_text: bool
) -> None:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": {"x": {"enum": ["a"]}}}
    assert is_enforced(parameters, EVERYTHING) == in_json
    assert is_enforced(parameters, RAW_TEXT) == in_raw_text
    for part in ("names", "required"):
        assert not is_enforced(parameters, EVERYTHING._replace(**{part: False}))


@pytest.mark.parametrize(
    "schema", [{"anyOf": []}, {"anyOf": None}, {"enum": []}, {"enum": None}, {"type": []}, {"prefixItems": None}]
)
def test_keyword_without_a_value_is_not_enforced(schema: dict[str, Any]) -> None:
    for parameters in ({"type": "object", "properties": {"x": schema}}, {"type": "object", **schema}):
        assert not is_enforced(parameters, EVERYTHING)


_KEYWORDS = (
    "type", "properties", "required", "additionalProperties", "enum", "const", "items", "prefixItems", "minItems",
    "maximum", "exclusiveMinimum", "minLength", "pattern", "anyOf", "allOf", "$ref", "$defs", "format", "title", "x",
)  # fmt: skip
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(allow_nan=False),
    st.sampled_from(["object", "string", "integer", "date", "x", ""]),
)  # fmt: skip
_SCHEMAS = st.recursive(
    _SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(_KEYWORDS), values, max_size=2),
    max_leaves=8,
)


_VALID: dict[str, Any] = {
    "type": "object", "required": ["a"], "additionalProperties": False, "$defs": {"x": {"type": ["string", "null"]}},
    "properties": {
        "a": {"$ref": "#/$defs/x"}, "b": {"type": "string", "minLength": 1}, "c": {"type": "integer", "minimum": 1},
        "d": {"type": "array", "items": {"enum": ["x"]}, "minItems": 1}, "e": {"anyOf": [{"type": "null"}, {}]},
        "f": {"prefixItems": [{"const": 1}]}, "g": {"type": "string", "pattern": "x"}, "h": {"format": "date"},
    },
}  # fmt: skip
_OTHER_VALUES: tuple[Any, ...] = (None, True, False, 5, -1.5, "x", [], [5], [[]], {}, {"a": 5}, {"type": "x"})


def iterate_variants(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value in which one value at any depth is another one."""
    yield from _OTHER_VALUES
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for variant in iterate_variants(item):
            copy = value.copy()
            copy[key] = variant
            yield copy


def check_and_weaken(parameters: dict[str, Any] | None, *, strict: bool) -> None:
    try:
        check(parameters, strict=strict)
    except ApiError:
        return
    parameters = parameters or {}
    for enforcement in (EVERYTHING, RAW_TEXT, CallEnforcement(*[False] * len(EVERYTHING))):
        is_enforced(parameters, enforcement)
    is_simple(parameters)
    declare_required(parameters)
    for weaken in filter(None, WEAKENINGS):
        weaken(parameters)


@pytest.mark.parametrize("strict", [True, False])
def test_schema_with_one_other_value_is_accepted_or_refused(strict: bool) -> None:
    check(_VALID, strict=True)
    assert is_enforced(_VALID, EVERYTHING)
    for variant in iterate_variants(_VALID):
        check_and_weaken(variant, strict=strict)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(_KEYWORDS), _SCHEMAS, max_size=4), st.booleans())
def test_any_parameters_are_accepted_or_refused(parameters: dict[str, Any], strict: bool) -> None:
    check_and_weaken(parameters, strict=strict)


def test_strict_tool_has_the_generic_format_if_that_of_the_model_is_not_enforced(renderer: Renderer) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "enum": ["aa", "bb"]}}, "required": ["x"]}
    for template, is_native in (("Qwen3-Coder", False), ("Qwen3.5-4B", False), ("Qwen-Qwen3-0.6B", True)):
        builder = make_builder(renderer, template)
        assert prepare_request(builder, {"f": parameters}).has_native_format
        prepared = prepare_request(builder, {"f": parameters}, strict=True, tool_choice="required")
        assert prepared.has_native_format == is_native
        assert bool(prepared.options.tools) == is_native
        (grammar,) = prepared.grammars
        lark = convert_tool_grammar(grammar) if isinstance(grammar, ToolGrammar) else f"start: {grammar}"
        assert allows(lark, format_calls([("f", '{"x": "aa"}')]))
        assert not allows(lark, format_calls([("f", '{"x": "cc"}')]))
