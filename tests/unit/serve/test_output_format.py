"""Output formats: response_format and the corresponding fields of other servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgechat.errors import GrammarError
from edgechat.prompt.json_schemas import make_json_rule
from edgechat.serve import errors
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import check_supported, make_output_format
from edgechat.serve.schemas import CompletionRequest
from tests.unit.serve.examples import chat_request

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
RULE = make_json_rule(SCHEMA, "")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format"),
        ({"json_schema": SCHEMA}, "json_schema"), ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
    ],
)  # fmt: skip
def test_schema_is_found_in_the_fields_of_several_servers(options: dict[str, Any], param: str) -> None:
    output_format = make_output_format(chat_request(**options))
    assert output_format.rule == RULE
    assert output_format.param == param


def test_regular_expressions_and_choices_become_rules() -> None:
    assert make_output_format(chat_request(guided_regex="a/b\\/c\n")).rule == "/a\\/b\\/c\\n/"
    assert make_output_format(chat_request(structured_outputs={"regex": "[0-9]+"})).rule == "/[0-9]+/"
    assert make_output_format(chat_request(guided_choice=["yes", 'n"o'])).rule == '"yes" | "n\\"o"'
    completion = errors.decode_body(b'{"prompt": "a", "structured_outputs": {"json_object": true}}', CompletionRequest)
    assert '"type": "object"' in make_output_format(completion).rule
    assert make_output_format(chat_request()).rule == ""
    assert make_output_format(chat_request(response_format={"type": "text"})).rule == ""


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "response_format.json_schema.schema"),
        ({"guided_json": "{"}, "guided_json"), ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": '{"title": "\\ud800"}'}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"), ({"guided_choice": ["", "a"]}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"), ({"structured_outputs": {"grammar": "root"}}, "structured_outputs"),
        ({"regex": "a", "json_schema": SCHEMA}, "regex"),
    ],
)  # fmt: skip
def test_invalid_formats_are_refused(options: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        make_output_format(chat_request(**options))
    assert caught.value.status == 400
    assert caught.value.param == param


def test_keyword_that_cannot_be_enforced_is_named_with_its_path() -> None:
    schema = {"type": "array", "items": {"minProperties": 3}}
    with pytest.raises(GrammarError, match=r"guided_json\.items: minProperties"):
        make_output_format(chat_request(guided_json=schema))


@pytest.mark.parametrize(
    "options",
    [{"grammar": 'root ::= "a"'}, {"functions": [{"name": "f"}]}, {"audio": {"voice": "x"}}, {"prompt_logprobs": 1}],
)
def test_request_that_cannot_be_answered_as_asked_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="not supported") as caught:
        check_supported(chat_request(**options))
    assert caught.value.param == next(iter(options))
    check_supported(chat_request(functions=[], audio=None, grammar="", modalities=["text"]))
    with pytest.raises(ApiError, match="only text"):
        check_supported(chat_request(modalities=["text", "audio"]))
    with pytest.raises(ApiError, match="not supported"):
        check_supported(chat_request(web_search_options={}))


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_object", "schema": {"x": "a" * 300_000}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": [{}] * 100_000}}}},
        {"json_schema": {"x": [{}] * 100_000}}, {"guided_json": {"x": [{}] * 100_000}},
        {"guided_json": json.dumps({"x": [{}] * 100_000})}, {"guided_json": "[" * 300_000},
        {"structured_outputs": {"json": {"x": [{}] * 100_000}}},
    ],
)  # fmt: skip
def test_schemas_that_are_larger_than_a_grammar_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(GrammarError, match=f"{next(iter(options))}.*bytes of JSON schema; the limit is 262144"):
        make_output_format(chat_request(**options))
