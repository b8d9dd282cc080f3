"""Options and progress messages that several benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from edgechat.cli.options import IntRange
from edgechat.cli.progress import echo_note

Command = Callable[..., None]
model_option = click.option(
    "-m", "--model", default="starter", show_default=True, metavar="NAME", help="Model name or .gguf file."
)
threads_option = click.option(
    "--threads", "n_threads", type=IntRange(1, 512), metavar="N", help="Number of compute threads."
)
gpu_option = click.option(
    "--gpu", "uses_gpu", is_flag=True, help="Compute every layer on the GPU, even where the CPU is faster."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")


def count_option(
    flag: str, name: str, help_text: str, *, default: int, minimum: int = 1, metavar: str | None = None
) -> Callable[[Command], Command]:
    return click.option(
        flag, name, type=IntRange(minimum), default=default, show_default=True, metavar=metavar, help=help_text
    )


def rounds_option(default: int) -> Callable[[Command], Command]:
    return count_option(
        "--rounds", "rounds", "Number of measurement rounds; the medians are reported.", default=default
    )


def peer_option(tool: str) -> Callable[[Command], Command]:
    return click.option(
        "--peer",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar=tool.replace("-", "_").upper(),
        help=f"{tool} executable to compare with; `make peers` builds it.",
    )


def print_progress(text: str) -> None:
    """Print the progress of a measurement to a terminal."""
    if sys.stderr.isatty():
        echo_note(text)
