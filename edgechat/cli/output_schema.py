"""JSON schemas for replies on the command line: reading them, and the grammar rule that enforces them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgechat.errors import GrammarError, UsageError, format_reason

_MAX_FILE_BYTES: Final = 1 << 18


def read_schema_rule(path: Path) -> tuple[dict[str, Any] | bool, str]:
    """Read a JSON schema from a file, and return it with its grammar rule.

    Raises UsageError if the file cannot be read or is not a JSON schema, and GrammarError if the schema cannot be
    enforced.
    """
    schema = _read_schema(path)
    return schema, make_schema_rule(schema, str(path))


def make_schema_rule(schema: dict[str, Any] | bool, name: str) -> str:  # a JSON schema may be a boolean
    """Return the grammar rule of a JSON schema. `name` begins the message of errors in the schema.

    Raises GrammarError if the schema cannot be enforced, or if llguidance is not installed.
    """
    from edgechat.prompt.json_schemas import make_json_rule
    from edgechat.runtime.grammar import require_llguidance

    require_llguidance()
    return make_json_rule(schema, name)


def _read_schema(path: Path) -> dict[str, Any] | bool:
    import msgspec

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Cannot read the JSON schema {format_reason(error)}.") from error
    if len(data) > _MAX_FILE_BYTES:
        raise GrammarError(f"{path} is larger than {_MAX_FILE_BYTES:,} bytes, the limit of a JSON schema. Simplify it.")
    try:
        schema = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}. A JSON schema is needed.") from error
    if not isinstance(schema, (dict, bool)):
        raise UsageError(f"{path} is not a JSON schema: it must be an object or a boolean, such as {{}}.")
    return schema
