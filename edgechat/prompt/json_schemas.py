"""Grammar rules for JSON schemas, in llguidance's variant of Lark; keywords that it does not enforce are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from edgechat.errors import GrammarError
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS

# Options of llguidance for fixed white space in JSON. With flexible white space, small models sometimes generate
# endless white space.
_FIXED_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_DEPTH: Final = 64
# JSON Schema keywords whose values map names to schemas.
_SCHEMA_MAP_KEYWORDS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
# JSON Schema keywords whose values are data, not schemas.
_DATA_KEYWORDS: Final = ("const", "enum", "default", "examples")
# Values of `propertyNames` that restrict nothing, because property names are always strings. Zod 4 writes the first
# value.
_MATCH_ALL_NAMES: Final[tuple[object, ...]] = ({"type": "string"}, {}, True)
_NUMERIC_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MAX_NUMERIC_LIMIT: Final = 1 << 53


def make_json_rule(schema: Mapping[str, Any] | bool, path: str) -> str:  # noqa: FBT001  (a JSON schema may be a boolean)
    """Convert a JSON schema to a grammar expression.

    Raises GrammarError for a keyword that is not supported, and for a schema larger than `MAX_GRAMMAR_CHARS`.
    """
    check_schema_size([schema], path, MAX_GRAMMAR_CHARS)
    expanded_schema: dict[str, Any] = {} if schema is True else {"not": {}} if schema is False else dict(schema)
    if "x-guidance" in expanded_schema:
        raise GrammarError(f"{path}: x-guidance is not supported, because edgechat sets this keyword.")
    for keyword, keyword_path in _find_unsupported_keywords(expanded_schema, 0):
        raise GrammarError(f"{path}{keyword_path}: {keyword} is not supported.")
    return "%json " + json.dumps(_drop_implied_keywords(expanded_schema) | {"x-guidance": _FIXED_SPACING})


def check_schema_size(schemas: Sequence[object], path: str, max_bytes: int) -> None:
    """Raise GrammarError if the total size of JSON schemas, encoded as JSON, exceeds `max_bytes`.

    Encoding the schemas of the largest request body takes less than 20 ms; a walk through them would take seconds.
    """
    n_bytes = len(msgspec.json.encode(schemas))
    if n_bytes > max_bytes:
        raise GrammarError(f"{path}: {n_bytes} bytes of JSON schema; the limit is {max_bytes}. Simplify it.")


def _drop_implied_keywords(schema: Any) -> Any:
    """Return a copy of a JSON schema without `propertyNames` keywords that restrict nothing."""
    if isinstance(schema, list):
        return [_drop_implied_keywords(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reduced_schema: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            reduced_schema[keyword] = {name: _drop_implied_keywords(item) for name, item in value.items()}
        elif keyword in _DATA_KEYWORDS:
            reduced_schema[keyword] = value
        elif keyword != "propertyNames" or value not in _MATCH_ALL_NAMES:
            reduced_schema[keyword] = _drop_implied_keywords(value)
    return reduced_schema


def _find_unsupported_keywords(schema: object, depth: int) -> Iterator[tuple[str, str]]:
    """Yield (keyword, path) for each keyword in a JSON schema that llguidance accepts but does not always enforce.

    A path is built only for a keyword that is yielded, because a path for every item would copy long keys repeatedly.
    """
    if depth > _MAX_DEPTH:
        yield f"a nesting of more than {_MAX_DEPTH} levels", ""
    elif isinstance(schema, (list, dict)):
        if isinstance(schema, dict):
            yield from ((keyword, "") for keyword in _find_unsupported_top_level_keywords(schema))
        for labels, subschema in _iterate_subschemas(schema):
            for keyword, path in _find_unsupported_keywords(subschema, depth + 1):
                yield (
                    keyword,
                    "".join(f"[{label}]" if isinstance(label, int) else f".{label}" for label in labels) + path,
                )


def _iterate_subschemas(schema: list[Any] | dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield the subschemas of a JSON schema, each with the keys or the index that lead to it."""
    if isinstance(schema, list):
        yield from (((i,), item) for i, item in enumerate(schema))
        return
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            yield from (((keyword, name), item) for name, item in value.items())
        elif keyword not in _DATA_KEYWORDS:
            yield (keyword,), value


def _find_unsupported_top_level_keywords(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the unsupported keywords of a JSON schema itself, without its subschemas."""
    min_properties, required = schema.get("minProperties"), schema.get("required")
    n_required = len({name for name in required if isinstance(name, str)}) if isinstance(required, list) else 0
    if isinstance(min_properties, (int, float)) and min_properties > max(1, n_required):
        # The grammar lets the model write the same additional property twice, which JSON parsers count only once.
        yield "minProperties above the number of required properties"
    for keyword in _NUMERIC_LIMITS:
        value = schema.get(keyword)
        if isinstance(value, (int, float)) and abs(value) > _MAX_NUMERIC_LIMIT:
            yield f"{keyword} beyond {_MAX_NUMERIC_LIMIT}"
