"""Replies to random JSON schemas: a finished reply is valid, and unsupported keywords are unsupported by name."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing import shorten
from tests.serve.client import ServerProcess

NAMES = st.sampled_from(["a", "b", "name", "größe", "with space", 'quo"te', "x-guidance", "$ref"])
NUMBERS = st.one_of(st.integers(-50, 50), st.sampled_from([0.5, -1.25, 2.0, 1000]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=2)), max_leaves=4,
)  # fmt: skip
# Unsupported keywords, each with a meaningful value.
UNSUPPORTED: dict[str, Any] = {
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
    schemas = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        *(st.builds(lambda name, items: {name: items}, st.just(n), schemas) for n in ("anyOf", "oneOf", "allOf"))
    )


SCHEMAS = st.recursive(
    st.one_of(
        strings(), numbers(), st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]},
        {}]),
        st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
        st.builds(lambda value: {"const": value}, VALUES),
    ),
    lambda inner: st.one_of(arrays(inner), objects(inner), composed(inner)),
    max_leaves=6,
)  # fmt: skip
UNSUPPORTED_KEYWORDS = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(sorted(UNSUPPORTED)))


def check(server: ServerProcess, schema: dict[str, Any], unsupported: str | None, seed: int) -> bool:
    """Request a reply to `schema` and validate it; return whether the reply was finished."""
    if unsupported is not None:
        schema = {
            "type": "object",
            "properties": {"outer": schema | {unsupported: UNSUPPORTED[unsupported]}},
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
        assert unsupported is None or unsupported in error["message"] or not is_supported(schema), (error, schema)
        return False
    assert status == 200, answer
    assert unsupported is None, (unsupported, schema)
    choice = answer["choices"][0]
    if choice["finish_reason"] != "stop":
        return False
    value = json.loads(choice["message"]["content"])
    jsonschema.Draft202012Validator(schema).validate(value)
    return True


def is_supported(schema: dict[str, Any]) -> bool:
    """Return False if the schema may contain another unsupported keyword."""
    return not any(name in json.dumps(schema) for name in ("oneOf", "allOf", "minProperties", "pattern", "imum"))


@settings(
    max_examples=20, deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
)
@given(schema=SCHEMAS, unsupported=UNSUPPORTED_KEYWORDS, seed=st.integers(0, 1000))
def test_finished_reply_matches_a_random_schema(
    server: ServerProcess, schema: dict[str, Any], unsupported: str | None, seed: int
) -> None:
    check(server, schema, unsupported, seed)


@pytest.mark.long
def test_finished_replies_match_two_hundred_random_schemas(server: ServerProcess) -> None:
    finished = []
    n_schemas = shorten(200, 60)

    @settings(
        max_examples=n_schemas, deadline=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(schema=SCHEMAS, unsupported=UNSUPPORTED_KEYWORDS, seed=st.integers(0, 1000))
    def run(schema: dict[str, Any], unsupported: str | None, seed: int) -> None:
        finished.append(check(server, schema, unsupported, seed))

    run()
    assert sum(finished) > n_schemas // 8  # enough replies for the test to mean something


def test_number_is_never_nan(server: ServerProcess) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number"}}}
    for seed in range(3):
        _, answer = server.chat(
            {"messages": "A number.", "response_format": form, "max_tokens": 20, "temperature": 2, "seed": seed}
        )
        if answer["choices"][0]["finish_reason"] == "stop":
            assert not math.isnan(json.loads(answer["choices"][0]["message"]["content"]))
