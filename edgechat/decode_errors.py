"""Describe errors of decoded data and of templates in users' terms, without the names of Python's types."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from edgechat.lazy_pattern import LazyPattern

# Names of msgspec's types for readers of configuration files.
_FILE_TYPES: Final = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "empty",
    "array": "a list", "object": "a table", "bytes": "text",
}  # fmt: skip
# Names of msgspec's types for readers of JSON.
_JSON_TYPES: Final = {
    "str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "null": "null",
    "array": "an array", "object": "an object", "bytes": "a string",
}  # fmt: skip
_MSGSPEC_TYPES: Final = {
    str: "str", int: "int", float: "float", bool: "bool", type(None): "null", list: "array", dict: "object"
}  # fmt: skip
# Pairs of types. If a field accepts both, messages omit the second: a number includes integers, and some clients write
# booleans as 0 and 1.
_IMPLIED_TYPES: Final = (("float", "int"), ("bool", "int"))
# Names of Python's types in its own error messages and in Jinja's. `list` is also an English word.
_PYTHON_TYPES: Final = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "NoneType": "null", "None": "null",
    "dict": "object", "list": "array", "tuple": "array", "Undefined": "undefined",
}  # fmt: skip
_INVALID_VALUE: Final = r"Invalid (?:enum )?value '?(.*?)'?"
# Number of characters of an invalid value that are shown in a message that names the allowed values.
_MAX_VALUE_CHARS: Final = 60
_QUOTED_TYPE: Final = LazyPattern(rf"""(['"])({"|".join(_PYTHON_TYPES)})( object)?\1( object\b)?""")
# Half of a surrogate pair that is followed by the end of its string, within the last bytes of JSON.
_LAST_SURROGATE: Final = LazyPattern(rb"\\u[dD][89abAB][0-9a-fA-F]{2}[^\\]{0,4}\"")
_BARE_TYPE: Final = LazyPattern(r"\b(str|int|bool|NoneType|dict)\b")


def describe_decode_error(error: Exception) -> str:
    """Rephrase a msgspec error for readers of configuration files: `must be a number, not text (at model[3].id)`."""
    text, path = _split(error)
    text = _rephrase(text, _FILE_TYPES, "a decimal number", has_null=False)
    path = path.replace("[...]", "")
    return f"{text} (at {path})" if path else text


def describe_json_error(
    error: Exception, patterns: Mapping[str, str], data_type: object | None = None
) -> tuple[str, str]:
    """Rephrase a msgspec error in terms of JSON, such as `must be a string, not null`; also return the value's path.

    `patterns` are descriptions of the regular expressions that values must match. With `data_type`, the type of the
    decoded data, the message for a value that is not in a closed set names the values of the set.
    """
    text, path = _split(error)
    if data_type is not None and (match := re.fullmatch(_INVALID_VALUE, text, re.DOTALL)):
        values = _list_allowed_values(data_type, path)
        if values:
            return f"must be {_join(values)}, not {match[1][:_MAX_VALUE_CHARS]!r}", path
    if match := re.fullmatch(r"Expected `str` matching regex '(.*)'", text, re.DOTALL):
        return patterns.get(match[1].replace("\\\\", "\\"), "has a form that is not allowed"), path
    return _rephrase(text, _JSON_TYPES, "a number", has_null=True), path


def describe_syntax_error(error: Exception, data: bytes | bytearray) -> str:
    """Return why `data` is not valid JSON, as a clause: `at byte 7 of 20: invalid character`."""
    if isinstance(error, RecursionError):
        return "its arrays and objects are nested too deeply"
    invalid_byte = describe_invalid_utf8(data)  # UnicodeDecodeError counts from the start of a string, not of `data`
    if invalid_byte:
        return invalid_byte
    if isinstance(error, UnicodeError) or is_lone_surrogate(error, data):
        return r"it contains half of a surrogate pair (\ud800 to \udfff), which is not a character"
    if str(error) == "Input data was truncated":
        return (
            f"it ends too early, after {len(data)} {'byte' if len(data) == 1 else 'bytes'}" if data else "it is empty"
        )
    match = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", str(error))
    return f"at byte {match[2]} of {len(data)}: {match[1]}" if match else describe_json_error(error, {})[0]


def describe_invalid_utf8(data: bytes | bytearray) -> str:
    """Return the first byte of `data` that is not UTF-8, as a clause: `its byte 5 of 9 is 0xe9, which is not UTF-8`."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"its byte {error.start} of {len(data)} is 0x{data[error.start]:02x}, which is not UTF-8"
    return ""


def is_lone_surrogate(error: Exception, data: bytes | bytearray) -> bool:
    """Return whether msgspec rejected JSON because of half of a surrogate pair; some programs write such JSON.

    Near the end of the data, where the other half would not fit, msgspec reports that the data is truncated.
    """
    text = str(error)
    return "surrogate" in text or (
        text == "Input data was truncated" and bool(_LAST_SURROGATE.compiled.search(data[-12:]))
    )


def name_json_type(value: object) -> str:
    """Return the name of the JSON type of a decoded value, such as `an array`."""
    return _JSON_TYPES[_MSGSPEC_TYPES[type(value)]]


def replace_type_names(text: str) -> str:
    """Replace the names of Python's types in an error message with those of JSON."""
    text = _QUOTED_TYPE.compiled.sub(lambda match: _PYTHON_TYPES[match[2]], text)
    return _BARE_TYPE.compiled.sub(lambda match: _PYTHON_TYPES[match[1]], text)


def _split(error: Exception) -> tuple[str, str]:
    text, _, path = str(error).partition(" - at `$")
    return text, path.rstrip("`").lstrip(".")


def _rephrase(text: str, type_names: Mapping[str, str], decimal_name: str, *, has_null: bool) -> str:
    def name(types: str) -> str:
        return _name_types(types, type_names, has_null=has_null)

    replacements: dict[str, Callable[[re.Match[str]], str]] = {
        r"Expected `([^`]*)`, got `float`": lambda m: f"must be {name(m[1])}, not {decimal_name}",
        r"Expected `([^`]*)`, got `([^`]*)`": lambda m: f"must be {name(m[1])}, not {name(m[2])}",
        r"Expected `[^`]*` that's a multiple of 1\.0": lambda _: f"must be {name('int')}",
        r"Expected `str` of length ([<>]=) (\d+)": lambda m: f"must have {_BOUNDS[m[1]]} {m[2]} characters",
        r"Expected `[^`]*` of length ([<>]=) (\d+)": lambda m: f"must have {_BOUNDS[m[1]]} {_count(m[2])}",
        r"Expected `[^`]*` ([<>]=) (\S+)": lambda m: f"must be {_BOUNDS[m[1]]} {m[2].removesuffix('.0')}",
        r"Expected `([^`]*)`": lambda m: f"must be {name(m[1])}",
        r"Object missing required field `([^`]*)`": lambda m: f"lacks the field {m[1]}",
        r"Object contains unknown field `([^`]*)`": lambda m: f"has the unknown field {m[1]}",
        _INVALID_VALUE: lambda m: f"{m[1]} is not a valid value",
    }
    for pattern, replacement in replacements.items():
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return replacement(match)
    return text


_BOUNDS: Final = {">=": "at least", "<=": "at most"}


def _count(number: str) -> str:
    return f"{number} item" if number == "1" else f"{number} items"


def _name_types(types: str, type_names: Mapping[str, str], *, has_null: bool) -> str:
    """Return the names in `type_names` for msgspec's types, such as `int | null`, as a list with "or".

    Without `has_null`, null is omitted: in a file, it only means that the value may be absent.
    """
    type_list = types.split(" | ")
    for general, implied in _IMPLIED_TYPES:
        if general in type_list and implied in type_list:
            type_list.remove(implied)
    if not has_null and len(type_list) > 1:
        type_list = [name for name in type_list if name != "null"]
    names = list(dict.fromkeys(type_names.get(name, name) for name in type_list))
    return _join(names)


def _join(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


def _list_allowed_values(data_type: object, path: str) -> list[str]:
    """Return the values of the closed set at `path`: those of a `Literal`, or the tags of a union of structs."""
    from msgspec import inspect

    def unpack(info: inspect.Type) -> list[inspect.Type]:
        if isinstance(info, inspect.Metadata):
            return unpack(info.type)
        return [t for member in info.types for t in unpack(member)] if isinstance(info, inspect.UnionType) else [info]

    infos = unpack(inspect.type_info(data_type))
    for part in re.findall(r"\[[^\]]*\]|[^.\[\]]+", path):
        inner: list[inspect.Type] = []
        for info in infos:
            if isinstance(info, inspect.StructType):
                inner += [t for field in info.fields if field.encode_name == part for t in unpack(field.type)]
                inner += [inspect.LiteralType((info.tag,))] if info.tag_field == part else []
            elif isinstance(info, inspect.ListType) and part.startswith("["):
                inner += unpack(info.item_type)
            elif isinstance(info, inspect.DictType) and part.startswith("["):
                inner += unpack(info.value_type)
        infos = inner
    values = [str(value) for info in infos if isinstance(info, inspect.LiteralType) for value in info.values]
    return list(dict.fromkeys(values))
