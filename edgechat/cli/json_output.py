"""JSON on standard output."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Final

import click

from edgechat.terminal import escape_json

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def echo_json(value: Any) -> None:
    """Print `value` as one line of JSON; values of unknown types become strings.

    In the names of files, U+FFFD replaces each byte that is not UTF-8.
    """
    import msgspec

    try:
        data = msgspec.json.encode(value, enc_hook=_encode)
    except UnicodeEncodeError:  # faster than a search for surrogates in every text
        data = msgspec.json.encode(_replace_surrogates(msgspec.to_builtins(value, enc_hook=_encode)))
    echo_json_text(data.decode())


def _encode(value: object) -> str:
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, os.PathLike) else str(value)


def _replace_surrogates(value: Any) -> Any:
    """Return a value of the built-in types of JSON without surrogates, which stand for bytes that are not UTF-8."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_replace_surrogates(name): _replace_surrogates(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_surrogates(item) for item in value]
    return value


def echo_json_text(text: str, *, nl: bool = True) -> None:
    r"""Print JSON; escape characters that the locale cannot encode as `\uXXXX`.

    On a terminal, control characters and invisible characters are escaped as well.
    """
    is_utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
    if sys.stdout.isatty() or not is_utf8:
        text = escape_json(text, ascii_only=not is_utf8)
    click.echo(text, nl=nl)
