"""JSON on standard output."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgechat.terminal import escape_json


def echo_json(value: Any) -> None:
    """Print `value` as one line of JSON; values of unknown types, such as paths, become strings."""
    import msgspec

    echo_json_text(msgspec.json.encode(value, enc_hook=str).decode())


def echo_json_text(text: str, *, nl: bool = True) -> None:
    r"""Print JSON, with `\uXXXX` for characters that the locale lacks.

    On a terminal, control characters and invisible characters are written in the same way.
    """
    is_utf8 = sys.stdout.encoding.lower() in {"utf-8", "utf8"}
    if sys.stdout.isatty() or not is_utf8:
        text = escape_json(text, ascii_only=not is_utf8)
    click.echo(text, nl=nl)
