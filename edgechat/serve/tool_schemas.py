"""JSON schemas of tools: validation, the keywords that grammars enforce, and conversion to weaker schemas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from edgechat.decode_errors import describe_json_error, name_json_type
from edgechat.prompt.call_enforcement import CallEnforcement
from edgechat.serve.errors import ApiError

# Keywords that grammars enforce, and annotations, which do not restrict values.
_ENFORCED_KEYWORDS: Final = frozenset((
    "type", "properties", "required", "additionalProperties", "enum", "const", "items", "prefixItems", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "format",
))  # fmt: skip
_ANNOTATIONS: Final = frozenset((
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment",
))  # fmt: skip
# Keywords that remain in a weaker schema if the whole schema cannot be enforced.
_BASIC_KEYWORDS: Final = frozenset((
    "type", "properties", "required", "enum", "const", "items", "anyOf", "oneOf", "$ref", "$defs", "definitions"
))  # fmt: skip
# Keywords of schemas that always compile to a grammar, unless they are too long.
_SIMPLE_KEYWORDS: Final = frozenset(
    ("type", "properties", "required", "additionalProperties", "enum", "const", "items")
)
# Groups of keywords that llama.cpp enforces together. In other combinations, it ignores some keywords
# (json-schema.cpp).
_LLAMA_CPP_GROUPS: Final = tuple(map(frozenset, (
    ("properties", "required", "additionalProperties"), ("items", "minItems", "maxItems"), ("prefixItems",), ("enum",),
    ("const",), ("pattern",), ("format",), ("minLength", "maxLength"), ("anyOf",), ("$ref",), ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"), ("minimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum"),
)))  # fmt: skip
# Keywords that llama.cpp enforces even if their value is null or an empty list.
_EMPTY_VALUE_KEYWORDS: Final = frozenset(("properties", "required", "const"))
_NUMERIC_LIMITS: Final = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
# STRING_FORMAT_RULES and "uuid" in llama.cpp's json-schema-to-grammar.cpp.
_LLAMA_CPP_FORMATS: Final = re.compile("date|time|date-time|uuid")
_TYPES: Final = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_SIMPLE_TYPES: Final = frozenset(("string", "number", "integer", "boolean"))
_SCALAR_TYPES: Final = _SIMPLE_TYPES | {"null"}
_SCHEMA_MAP_KEYWORDS: Final = ("properties", "$defs", "definitions")
_SCHEMA_LIST_KEYWORDS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_KEYWORDS: Final = ("items", "additionalProperties")
# Keywords that can declare properties of an object outside its own `properties`.
_COMBINING_KEYWORDS: Final = frozenset(("$ref", "allOf", "anyOf", "oneOf", "patternProperties"))
_NULLABLE_KEYWORDS: Final = frozenset(("const", "default"))
_MAX_DEPTH: Final = 64


class _Structure(msgspec.Struct, rename="camel"):
    """JSON schema keywords for the structure of values, with the required type of each keyword's value."""

    type: str | list[str] | UnsetType = UNSET
    required: list[str] | UnsetType = UNSET
    enum: list[Any] | UnsetType = UNSET
    properties: dict[str, Any] | UnsetType = UNSET
    defs: dict[str, Any] | UnsetType = msgspec.field(name="$defs", default=UNSET)
    definitions: dict[str, Any] | UnsetType = UNSET
    any_of: list[Any] | UnsetType = UNSET
    one_of: list[Any] | UnsetType = UNSET
    all_of: list[Any] | UnsetType = UNSET
    prefix_items: list[Any] | UnsetType = UNSET


class _ValueKeywords(msgspec.Struct, rename="camel"):
    """Other JSON schema keywords that grammars enforce, with the required type of each keyword's value."""

    ref: str | UnsetType = msgspec.field(name="$ref", default=UNSET)
    pattern: str | UnsetType = UNSET
    format: str | UnsetType = UNSET
    min_length: int | UnsetType = UNSET
    max_length: int | UnsetType = UNSET
    min_items: int | UnsetType = UNSET
    max_items: int | UnsetType = UNSET
    minimum: float | UnsetType = UNSET
    maximum: float | UnsetType = UNSET
    exclusive_minimum: float | UnsetType = UNSET
    exclusive_maximum: float | UnsetType = UNSET


def check_parameters(parameters: Mapping[str, Any] | None, path: str) -> None:
    """Raise ApiError if the schema of a tool's parameters is malformed or does not describe an object."""
    types = _get_types(parameters or {})
    if types and "object" not in types:
        raise ApiError(400, f'{path}.type: must be "object", because arguments have names.', param=f"{path}.type")
    problem = next(_find_malformed(parameters or {}, 0), None)
    if problem is not None:
        place, text = problem
        raise ApiError(400, f"{path}{place}: {text}.", param=f"{path}{place}", code="invalid_value")


def _find_malformed(schema: object, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the place and the problem of each value with a wrong type in a JSON schema. Null counts as absent."""
    if isinstance(schema, Mapping):
        yield from _find_wrong_types(schema, _Structure)
        for place, item in _iterate_placed_subschemas(schema) if depth <= _MAX_DEPTH else ():
            yield from ((place + inner_place, text) for inner_place, text in _find_malformed(item, depth + 1))
    elif not isinstance(schema, (bool, type(None))):
        yield "", f"must be an object, not {name_json_type(schema)}"


def _find_wrong_types(schema: Mapping[str, Any], types: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Yield the place and the problem of the first keyword whose value does not have the type declared in `types`."""
    try:
        msgspec.convert({keyword: value for keyword, value in schema.items() if value is not None}, types)
    except msgspec.ValidationError as error:
        text, place = describe_json_error(error, {})
        yield f".{place}", text


def _iterate_placed_subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the subschemas of a JSON schema, each with its place, such as `.properties.name`."""
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            yield from ((f".{keyword}.{name}", item) for name, item in value.items())
        elif keyword in (*_SCHEMA_LIST_KEYWORDS, "items") and isinstance(value, list):
            yield from ((f".{keyword}[{i}]", item) for i, item in enumerate(value))
        elif keyword in _SCHEMA_KEYWORDS:
            yield f".{keyword}", value


def _get_types(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the type names in the keyword `type` of a JSON schema; empty if the schema has none."""
    value = schema.get("type")
    return frozenset(t for t in (value if isinstance(value, list) else [value]) if isinstance(t, str))


def check_strict(parameters: Mapping[str, Any], name: str, path: str) -> None:
    """Raise ApiError if the schema of the strict function `name` has a keyword or type that no grammar enforces."""
    keyword = next(_find_unenforced_keywords(parameters, 0), None)
    if keyword is not None:
        message = (
            f"{path}: {keyword[:80]} cannot be enforced, and the function {name} is strict. "
            'Change the schema, or remove "strict".'
        )
        raise ApiError(400, message, param=path, code="unsupported_schema")


def _find_unenforced_keywords(schema: object, depth: int) -> Iterator[str]:
    """Yield the keywords in a JSON schema that grammars do not enforce."""
    if not isinstance(schema, Mapping):
        return
    if depth > _MAX_DEPTH:
        yield f"a nesting of more than {_MAX_DEPTH} levels"
        return
    yield from (keyword for keyword in schema if keyword not in _ENFORCED_KEYWORDS | _ANNOTATIONS)
    yield from (f"{place[1:]} ({text})" for place, text in _find_wrong_types(schema, _ValueKeywords))
    yield from (f'the type "{name}"' for name in sorted(_get_types(schema) - _TYPES))
    if schema.get("type") == []:
        yield "an empty list of types"
    if undeclared_names := _find_undeclared(schema):
        yield f"the required property {undeclared_names[0]}, which is not in properties,"
    for subschema in _iterate_subschemas(schema):
        yield from _find_unenforced_keywords(subschema, depth + 1)


def is_enforced(parameters: Mapping[str, Any], enforcement: CallEnforcement) -> bool:
    """Return whether calls in the model's own format always match the schema of a tool's parameters."""
    properties = parameters.get("properties") or {}
    is_plain = not parameters.keys() & (_COMBINING_KEYWORDS | {"enum", "const"})
    return (
        enforcement.names
        and (enforcement.required or not parameters.get("required"))
        and (enforcement.strings or is_plain)
        and _is_enforced_by_llama_cpp(parameters, 0)
        and all(_is_property_enforced(schema, enforcement, 0) for schema in properties.values())
    )


def _is_property_enforced(schema: object, enforcement: CallEnforcement, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return False
    keywords, types = schema.keys() - _ANNOTATIONS, _get_types(schema)
    if keywords <= {"type"} and (not types or "string" in types):
        return enforcement.string_type or not keywords
    if keywords == {"anyOf"} and isinstance(schema["anyOf"], list):
        return all(_is_property_enforced(branch, enforcement, depth + 1) for branch in schema["anyOf"])
    if not types or "string" in types:
        return enforcement.strings
    return enforcement.values and (types <= _SCALAR_TYPES or enforcement.nested)


def _is_enforced_by_llama_cpp(schema: object, depth: int) -> bool:
    """Return whether a grammar of llama.cpp enforces a JSON schema for values that the model writes as JSON."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return isinstance(schema, bool)
    keywords, types = schema.keys() - _ANNOTATIONS - {"type", "$defs", "definitions"}, _get_types(schema)
    return (
        (not keywords or any(keywords <= group for group in _LLAMA_CPP_GROUPS))
        and schema.get("type") != []
        and not any(schema[keyword] in ([], None) for keyword in keywords - _EMPTY_VALUE_KEYWORDS)
        and (not keywords & _NUMERIC_LIMITS or ("integer" in types and "number" not in types))
        and ("format" not in keywords or bool(_LLAMA_CPP_FORMATS.fullmatch(str(schema["format"]))))
        and (not keywords & {"minItems", "maxItems"} or "array" in types)
        and (not isinstance(schema.get("items"), list))
        and all(_is_enforced_by_llama_cpp(subschema, depth + 1) for subschema in _iterate_subschemas(schema))
    )


def is_simple(schema: object, depth: int = 0) -> bool:
    """Return whether the engine can certainly compile the grammar of a JSON schema, unless it is too long."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    types = schema.get("type", "object")
    return (
        depth <= _MAX_DEPTH
        and schema.keys() <= _SIMPLE_KEYWORDS | _ANNOTATIONS
        and schema.get("enum") != []
        and all(isinstance(t, str) and t in _TYPES for t in (types if isinstance(types, list) else [types]))
        and all(is_simple(subschema, depth + 1) for subschema in _iterate_subschemas(schema))
    )


def _iterate_subschemas(schema: Mapping[str, Any]) -> Iterator[object]:
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            yield from value.values()
        elif keyword in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            yield from value
        elif keyword in _SCHEMA_KEYWORDS:
            yield value


def _convert_subschemas(schema: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a copy of a JSON schema with converted subschemas."""
    new_schema: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            new_schema[keyword] = {name: convert(item) for name, item in value.items()}
        elif keyword in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            new_schema[keyword] = [convert(item) for item in value]
        else:
            new_schema[keyword] = convert(value) if keyword in _SCHEMA_KEYWORDS else value
    return new_schema


def remove_nulls(schema: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON schema without null values, which some clients write for absent keywords."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return schema
    present = {k: v for k, v in schema.items() if v is not None or k in _NULLABLE_KEYWORDS}
    return _convert_subschemas(present, lambda item: remove_nulls(item, depth + 1))


def _find_undeclared(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of required properties that are not in the `properties` of a JSON schema."""
    required, properties = schema.get("required"), schema.get("properties") or {}
    if not isinstance(required, list) or not isinstance(properties, Mapping) or schema.keys() & _COMBINING_KEYWORDS:
        return []
    if "object" not in _get_types(schema) and "properties" not in schema:
        return []
    return [name for name in required if isinstance(name, str) and name not in properties]


def declare_required(schema: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON schema that also declares the required properties missing from `properties`.

    The grammars of llama.cpp contain only declared properties, so the model could not write the missing ones. These may
    have any value, unless `additionalProperties` is a schema.
    """
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return schema
    new_schema = _convert_subschemas(schema, lambda item: declare_required(item, depth + 1))
    if names := _find_undeclared(schema):
        value = new_schema.get("additionalProperties")
        item = value if isinstance(value, Mapping) else {}
        new_schema["properties"] = {**(new_schema.get("properties") or {}), **dict.fromkeys(names, item)}
    return new_schema


def close_objects(schema: Any) -> Any:
    """Return a copy of a JSON schema whose objects have declared properties only, unless it says otherwise.

    Few clients write `additionalProperties`, and small models invent properties where a grammar allows them. The
    grammars of llama.cpp do the same. A schema that declares the properties of one object in several places is
    unchanged, and so are objects without `properties`.
    """
    return schema if _declares_in_several_places(schema, 0) else _close_objects(schema, 0)


def _declares_in_several_places(schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping):
        return False
    combining_keywords = schema.keys() & _COMBINING_KEYWORDS
    return (
        depth > _MAX_DEPTH
        or bool(combining_keywords & {"allOf", "patternProperties"})
        or (bool(combining_keywords) and "properties" in schema)
        or any(_declares_in_several_places(subschema, depth + 1) for subschema in _iterate_subschemas(schema))
    )


def _close_objects(schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return schema
    new_schema = _convert_subschemas(schema, lambda item: _close_objects(item, depth + 1))
    return {"additionalProperties": False, **new_schema} if "properties" in new_schema else new_schema


def _allow_any_object(_schema: Any) -> dict[str, Any]:
    return {"type": "object"}


def _keep_simple_types(schema: Any) -> dict[str, Any]:
    """Reduce the JSON schema of an object to its `properties`, with simple types only, and `required`."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return _allow_any_object(schema)
    types = {name: item.get("type") if isinstance(item, Mapping) else None for name, item in properties.items()}
    required = schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return {
        "type": "object",
        "properties": {
            name: {"type": t} if isinstance(t, str) and t in _SIMPLE_TYPES else {} for name, t in types.items()
        },
        "required": sorted(names & types.keys()),
        **_keep_closed(schema),
    }


def _keep_closed(schema: Mapping[str, Any]) -> dict[str, bool]:
    """Return the `additionalProperties` of an object that may have only the properties it declares in one place."""
    is_closed = schema.get("additionalProperties") is False and not schema.keys() & _COMBINING_KEYWORDS
    return {"additionalProperties": False} if is_closed else {}


def _keep_enforced_keywords(schema: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON schema without the keywords that no grammar enforces."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return {} if isinstance(schema, Mapping) else schema
    enforced = {keyword: value for keyword, value in schema.items() if keyword in _ENFORCED_KEYWORDS | _ANNOTATIONS}
    return _convert_subschemas(enforced, lambda item: _keep_enforced_keywords(item, depth + 1))


def _keep_basic_keywords(schema: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON schema with only the `_BASIC_KEYWORDS`; closed objects stay closed."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return {} if isinstance(schema, Mapping) else schema
    basic = {keyword: value for keyword, value in schema.items() if keyword in _BASIC_KEYWORDS} | _keep_closed(schema)
    return _convert_subschemas(basic, lambda item: _keep_basic_keywords(item, depth + 1))


WEAKENINGS: Final[Sequence[Callable[[Any], Any] | None]] = (
    None, _keep_enforced_keywords, _keep_basic_keywords, _keep_simple_types, _allow_any_object
)  # fmt: skip
"""Functions that weaken the schema of a tool, mildest first; None leaves the schema unchanged."""
