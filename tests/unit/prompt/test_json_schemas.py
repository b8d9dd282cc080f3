"""Grammar rules for JSON schemas: property names, refused keywords, limits of size and nesting."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.errors import GrammarError
from edgechat.prompt import json_schemas
from edgechat.prompt.json_schemas import make_json_rule
from tests.grammars import allows


def test_property_names_that_restrict_nothing_are_dropped() -> None:
    names = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}
    properties = {"propertyNames": {"anyOf": [names, {"type": "null"}]}, "data": {"enum": [{"propertyNames": {}}]}}
    rule = make_json_rule({"type": "object", "properties": properties, "required": list(properties)}, "schema")
    assert allows(f"start: {rule}", '{"propertyNames": {"a": 1}, "data": {"propertyNames": {}}}')
    assert not allows(f"start: {rule}", '{"propertyNames": {"a": "b"}, "data": {"propertyNames": {}}}')
    assert '"propertyNames"' in make_json_rule({"propertyNames": {"pattern": "a"}}, "schema")


def test_min_properties_is_refused_unless_the_properties_are_required() -> None:
    for schema in ({"type": "object", "minProperties": 2}, {"items": {"minProperties": 3, "required": ["a", "b"]}}):
        with pytest.raises(GrammarError, match="minProperties"):
            make_json_rule(schema, "response_format")
    supported = {"type": "object", "minProperties": 2, "required": ["a", "b"], "properties": {"a": {}, "b": {}}}
    assert make_json_rule(supported, "response_format")


@pytest.mark.parametrize("container", ["items", "properties", "enum", "required"])
def test_large_schema_is_refused_without_a_walk_through_it(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {str(i): {} for i in range(300_000)} if container == "properties" else [{}] * 300_000
    for walk in ("_find_unsupported_keywords", "_drop_implied_keywords"):
        monkeypatch.setattr(json_schemas, walk, lambda *_arguments: pytest.fail("walks through the schema"))
    with pytest.raises(GrammarError, match="bytes of JSON schema; the limit is 262144"):
        make_json_rule({container: values}, "response_format")


def test_path_of_an_unsupported_keyword_is_complete() -> None:
    bound = {"maximum": 1 << 60}
    for schema, path in (
        ({"properties": {"a": {"items": [{}, bound]}}}, "tools.properties.a.items[1]"),
        ({"$defs": {"x.y": {"not": {"anyOf": [bound]}}}}, "tools.$defs.x.y.not.anyOf[0]"),
        (bound, "tools"),
    ):
        with pytest.raises(GrammarError) as caught:
            make_json_rule(schema, "tools")
        assert str(caught.value) == f"{path}: maximum beyond {1 << 53} is not supported."


def test_nesting_is_limited() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="nesting of more than 64 levels is not supported"):
        make_json_rule(schema, "response_format")
