"""`edgechat bench`: measurements."""

from __future__ import annotations

import click


@click.group()
def bench() -> None:
    """Measure this machine, and edgechat against llama.cpp's own tools."""
