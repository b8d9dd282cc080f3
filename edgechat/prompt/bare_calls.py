"""Tool calls in plain JSON, without the marks of the model's format: as a whole reply, or in a code block."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

_CODE_FENCE: Final = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL)
_FENCE: Final = "```"
_LANGUAGE: Final = "json"
# Names with which the object of a call can begin.
_KEYS: Final = ('"name"', '"arguments"', '"parameters"', '"type"', '"function"', '"id"')


def may_become_bare_call(content: str) -> bool:
    """Return whether the beginning of a reply can become a call in plain JSON."""
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
    return text.startswith("{") and any(name.startswith(key) or key.startswith(name) for name in _KEYS)


def find_bare_calls(content: str, tool_names: Collection[str]) -> list[tuple[str, str]]:
    """Return the names and the arguments, in JSON, of the calls of which a reply consists.

    The list is empty if the reply is anything else than calls of tools in `tool_names`. A reply can be one call, a
    list, or one call after the other, and its arguments can be an object or its text in JSON.
    """
    text = content.strip()
    if fenced := _CODE_FENCE.fullmatch(text):
        text = fenced[1].strip()
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
    """Yield JSON values that follow each other, with white space between them. Raises ValueError, RecursionError."""
    decoder, position = json.JSONDecoder(parse_constant=_refuse_constant), 0
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        position += len(text[position:]) - len(text[position:].lstrip())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid in JSON")


def _read_call(item: object) -> tuple[str, object]:
    """Return the name and the arguments of a call; "" if `item` is no call. Raises ValueError, RecursionError."""
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return "", None
    arguments = item.get("arguments", item.get("parameters"))
    return item["name"], json.loads(arguments) if isinstance(arguments, str) else arguments
