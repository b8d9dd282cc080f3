"""JSON on standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from edgechat.terminal import escape_json


def echo_json(value: Any) -> None:
    """Print `value` as one line of JSON; values of unknown types become strings.

    In paths, U+FFFD replaces bytes that are not UTF-8.
    """
    import msgspec

    echo_json_text(msgspec.json.encode(value, enc_hook=_encode).decode())


def _encode(value: object) -> str:
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, os.PathLike) else str(value)


def echo_json_text(text: str, *, nl: bool = True) -> None:
    r"""Print JSON; escape characters that the locale cannot encode as `\uXXXX`.

    On a terminal, control characters and invisible characters are escaped as well.
    """
    is_utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
    if sys.stdout.isatty() or not is_utf8:
        text = escape_json(text, ascii_only=not is_utf8)
    click.echo(text, nl=nl)
