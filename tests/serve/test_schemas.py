"""Whatever a schema asks for, an answer that ended by itself is that; what cannot be held to is named in an error."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serve.driving import Server

NAMES = st.sampled_from(["a", "b", "name", "größe", "with space", 'quo"te', "x-guidance", "$ref"])
NUMBERS = st.one_of(st.integers(-50, 50), st.sampled_from([0.5, -1.25, 2.0, 1000]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=2)), max_leaves=4,
)  # fmt: skip
# What cannot be enforced, with a value that means something.
REFUSED: dict[str, Any] = {
    "uniqueItems": True, "not": {"type": "null"}, "if": {"type": "null"}, "contains": {"type": "integer"},
    "propertyNames": {"pattern": "a"}, "dependentRequired": {"a": ["b"]}, "unevaluatedProperties": False,
}  # fmt: skip


def strings() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just("string")}, optional={
        "minLength": st.integers(0, 4), "maxLength": st.integers(4, 12),
        "pattern": st.sampled_from(["^[a-z]+$", "x", "^(foo|bar)", "[0-9]{2,3}$", "^.{1,6}$"]),
    })  # fmt: skip


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional={
        "minimum": NUMBERS, "maximum": st.integers(50, 99), "exclusiveMinimum": st.integers(-60, 40),
        "exclusiveMaximum": st.integers(60, 99), "multipleOf": st.integers(1, 5),
    })  # fmt: skip


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just("array")}, optional={
        "items": inner, "prefixItems": st.lists(inner, min_size=1, max_size=2), "minItems": st.integers(0, 2),
        "maxItems": st.integers(2, 4),
    })  # fmt: skip


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.one_of(st.booleans(), inner))
    if draw(st.integers(0, 7)) == 0:
        schema["minProperties"] = draw(st.integers(0, 3))
    return schema


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        *(st.builds(lambda name, each: {name: each}, st.just(n), several) for n in ("anyOf", "oneOf", "allOf"))
    )


SCHEMAS = st.recursive(
    st.one_of(
        strings(), numbers(), st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}]),
        st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
        st.builds(lambda value: {"const": value}, VALUES),
    ),
    lambda inner: st.one_of(arrays(inner), objects(inner), composed(inner)),
    max_leaves=6,
)  # fmt: skip
REFUSED_AT = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(sorted(REFUSED)))


def check(server: Server, schema: dict[str, Any], refused: str | None, seed: int) -> bool:
    """Ask for it; True if the answer came to its end by itself."""
    if refused is not None:
        schema = {
            "type": "object",
            "properties": {"outer": schema | {refused: REFUSED[refused]}},
            "required": ["outer"],
        }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {
        "messages": "Say something.",
        "response_format": form,
        "max_tokens": 48,
        "temperature": seed % 3 / 2,
        "seed": seed,
    }
    status, answer = server.chat(body)
    if status == 400:
        error = answer["error"]
        assert error["code"] == "unsupported_format"
        assert refused is None or refused in error["message"] or not could_be(schema), (error, schema)
        return False
    assert status == 200, answer
    assert refused is None, (refused, schema)
    choice = answer["choices"][0]
    if choice["finish_reason"] != "stop":
        return False
    value = json.loads(choice["message"]["content"])
    jsonschema.Draft202012Validator(schema).validate(value)
    return True


def could_be(schema: dict[str, Any]) -> bool:
    """False if another reason to refuse it comes first."""
    return not any(name in json.dumps(schema) for name in ("oneOf", "allOf", "minProperties", "pattern", "imum"))


@settings(
    max_examples=30, deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
)
@given(schema=SCHEMAS, refused=REFUSED_AT, seed=st.integers(0, 1000))
def test_random_schemas(server: Server, schema: dict[str, Any], refused: str | None, seed: int) -> None:
    check(server, schema, refused, seed)


@pytest.mark.long
def test_two_hundred_random_schemas(server: Server) -> None:
    ended = []

    @settings(
        max_examples=200, deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
    )
    @given(schema=SCHEMAS, refused=REFUSED_AT, seed=st.integers(0, 1000))
    def ask(schema: dict[str, Any], refused: str | None, seed: int) -> None:
        ended.append(check(server, schema, refused, seed))

    ask()
    assert sum(ended) > 50  # else nothing much was proved


def test_numbers_are_numbers(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number"}}}
    for seed in range(5):
        _, answer = server.chat(
            {"messages": "A number.", "response_format": form, "max_tokens": 20, "temperature": 2, "seed": seed}
        )
        if answer["choices"][0]["finish_reason"] == "stop":
            assert not math.isnan(json.loads(answer["choices"][0]["message"]["content"]))
