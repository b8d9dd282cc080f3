"""Detection of tool calls that a model writes as plain JSON, without the tags of its own call format."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

_CODE_FENCE: Final = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL)
_FENCE: Final = "```"
_LANGUAGE: Final = "json"
# Keys with which the JSON object of a call can begin.
_FIRST_KEYS: Final = ('"name"', '"arguments"', '"parameters"', '"type"', '"function"', '"id"')


def may_become_bare_call(content: str) -> bool:
    """Return whether a reply that begins with `content` may be a tool call in plain JSON."""
    text = content.lstrip()
    if _FENCE.startswith(text):
        return bool(text)
    if text.startswith(_FENCE):
        text = text[len(_FENCE) :]
        if _LANGUAGE.startswith(text):
            return True
        text = text.removeprefix(_LANGUAGE).lstrip()
    if text.startswith("["):
        text = text[1:].lstrip()
    if not text:
        return True
    key = text[1:].lstrip()
    return text.startswith("{") and any(name.startswith(key) or key.startswith(name) for name in _FIRST_KEYS)


def find_bare_calls(content: str, tool_names: Collection[str]) -> list[tuple[str, str]]:
    """Return the name and the JSON arguments of each call in a reply that consists only of tool calls.

    Return an empty list if the reply contains anything except calls of tools in `tool_names`. The reply may be a single
    call, a list of calls, or several calls in a row. Arguments may be an object or a string that contains JSON.
    """
    text = content.strip()
    if code_block := _CODE_FENCE.fullmatch(text):
        text = code_block[1].strip()
    if not text.startswith(("{", "[")):
        return []
    calls = []
    try:
        for value in _iterate_values(text):
            for item in value if isinstance(value, list) else [value]:
                name, arguments = _read_call(item)
                if name not in tool_names or not isinstance(arguments, dict):
                    return []
                calls.append((name, json.dumps(arguments, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return []
    return calls


def _iterate_values(text: str) -> Iterator[Any]:
    """Yield consecutive JSON values, with or without white space between them. Raises ValueError, RecursionError."""
    decoder, position = json.JSONDecoder(parse_constant=_refuse_constant), 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        position += len(text[position:]) - len(text[position:].lstrip())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid in JSON")


def _read_call(item: object) -> tuple[str, object]:
    """Return the name ("" if `item` is not a call) and the arguments of a call. Raises ValueError, RecursionError."""
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return "", None
    arguments = item.get("arguments", item.get("parameters"))
    return item["name"], json.loads(arguments) if isinstance(arguments, str) else arguments
