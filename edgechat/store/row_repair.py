"""Repair of damaged rows: values that a column cannot have are replaced, so that the rest of the row can be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, get_args

import msgspec

from edgechat.chat.messages import FinishReason, Role
from edgechat.engine.generation import GenerationStats

ID_PATTERN: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
MAX_TIMESTAMP_MS: Final = (1 << 43) - (1 << 20)
"""Latest time that fits into the upper 43 bits of a database key (in the year 2248)."""
_MAX_INTEGER: Final = (1 << 63) - 1
_ROLES: Final = frozenset(get_args(Role))
_FINISH_REASONS: Final = frozenset(get_args(FinishReason))

Repair = Callable[[Any, int], Any]
"""Function that returns a valid value for a column; the arguments are the stored value and the key of the row."""


class RepairedRow(NamedTuple):
    """Row with valid values."""

    values: dict[str, Any]
    is_changed: bool
    """True if a value was replaced, or if invalid UTF-8 in a text was replaced."""


def _text(value: Any, _key: int) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _optional_text(value: Any, key: int) -> Any:
    return None if value is None else _text(value, key)


def _id(value: Any, key: int) -> Any:
    text = _text(value, key)
    return text if ID_PATTERN.fullmatch(text) else f"{key:016x}"


def _optional_id(value: Any, key: int) -> Any:
    text = _text(value, key)
    return text if ID_PATTERN.fullmatch(text) else None


def _integer(value: Any, _key: int) -> Any:
    return value if isinstance(value, int) and 0 <= value <= _MAX_INTEGER else 0


def _optional_integer(value: Any, _key: int) -> Any:
    return value if isinstance(value, int) and 0 <= value <= _MAX_INTEGER else None


def _time(value: Any, _key: int) -> Any:
    return value if isinstance(value, int) and 0 <= value <= MAX_TIMESTAMP_MS else 0


def _flag(value: Any, _key: int) -> Any:
    return value if value in (0, 1) and isinstance(value, int) else 0


def _role(value: Any, key: int) -> Any:
    text = _text(value, key)
    return text if text in _ROLES else "user"


def _finish_reason(value: Any, key: int) -> Any:
    text = _text(value, key)
    return text if text in _FINISH_REASONS else ""


def _json(value_type: Any, default: str | None) -> Repair:
    decoder = msgspec.json.Decoder(value_type)

    def repair(value: Any, key: int) -> Any:
        if value is None:
            return default
        text = _text(value, key)
        try:
            decoder.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            return default
        return text

    return repair


COLUMNS: Final[Mapping[str, Mapping[str, Repair]]] = {
    "conversations": {
        "key": _integer, "id": _id, "title": _text, "model": _text, "settings": _json(dict[str, Any], "{}"),
        "pinned": _flag, "archived": _flag, "tags": _json(tuple[str, ...], "[]"), "folder": _text,
        "created_at_ms": _time, "updated_at_ms": _time, "head_key": _optional_integer,
    },
    "messages": {
        "key": _integer, "id": _id, "conversation_key": _integer, "parent_key": _optional_integer, "role": _role,
        "text": _text, "reasoning": _text, "created_at_ms": _time, "model": _text, "finish_reason": _finish_reason,
        "n_tokens": _optional_integer, "stats": _json(GenerationStats, None), "context_start_id": _optional_id,
        "active_child_key": _optional_integer, "writer": _text, "hidden_by": _optional_integer,
        "hidden_at_ms": _optional_integer,
    },
    "attachments": {"sha256": _text, "data": lambda value, _key: value if isinstance(value, bytes) else b""},
    "message_attachments": {
        "message_key": _integer, "position": _integer, "sha256": _text, "name": _text, "media_type": _text,
    },
}  # fmt: skip
"""Columns of each table of the schema, in order."""


def repair_row(table: str, values: Iterable[Any]) -> RepairedRow:
    """Return a row with valid values in all columns of `table`.

    `values` are the stored values in the order of the columns. Texts may be bytes. Missing values at the end count as
    None. An invalid ID is replaced by the key of the row in hexadecimal.
    """
    columns = COLUMNS[table]
    stored_values = dict(zip(columns, [*values, *[None] * len(columns)]))  # noqa: B905  (surplus values)
    key = _integer(stored_values.get("key"), 0)
    repaired_values = {name: repair(stored_values[name], key) for name, repair in columns.items()}
    changed_columns = [
        name
        for name, value in repaired_values.items()
        if value is not stored_values[name] and _differs(stored_values[name], value)
    ]
    if "role" in changed_columns and repaired_values["model"]:
        repaired_values["role"] = "assistant"  # only replies have a model
    return RepairedRow(repaired_values, bool(changed_columns))


def repair_value(table: str, column: str, value: Any, key: int) -> Any:
    """Return a valid value of one column; `key` is the key of its row."""
    return COLUMNS[table][column](value, key)


def _differs(value: Any, repaired_value: Any) -> bool:
    if isinstance(value, bytes) and isinstance(repaired_value, str):
        return value != repaired_value.encode()
    return value != repaired_value or isinstance(value, float)
