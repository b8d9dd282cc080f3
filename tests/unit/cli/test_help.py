"""Help of all commands: complete summaries, and one way to name a model."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from edgechat.cli.root import edgechat
from tests.conftest import Cli

MAX_SUMMARY = 60
# A command keeps the help option of its first context, also for the tests that run later in the same process.
HELP_OPTIONS = edgechat.context_settings["help_option_names"]


def commands(command: click.Command, path: str = "edgechat") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


ALL = dict(commands(edgechat))


@pytest.mark.parametrize("path", ALL)
def test_summary_is_not_cut_off(path: str) -> None:
    summary = ALL[path].get_short_help_str(limit=MAX_SUMMARY)
    assert summary
    assert not summary.endswith("...")


@pytest.mark.parametrize(
    "path",
    [
        "edgechat",
        "edgechat ask",
        "edgechat serve",
        "edgechat plan",
        *(p for p in ALL if p.startswith("edgechat bench ")),
    ],
)
def test_model_is_named_with_one_option(path: str) -> None:
    if path in {"edgechat bench tui", "edgechat bench store", "edgechat bench routing"}:
        pytest.skip("measures no model of the user's choice, or two")
    options = {name for parameter in ALL[path].params for name in parameter.opts}
    assert {"-m", "--model"} <= options


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("edgechat plan", ["starter"]), ("edgechat plan", ["-m", "starter"]),
        ("edgechat bench memory", [__file__]), ("edgechat bench memory", ["-m", "starter"]),
    ],
)  # fmt: skip
def test_model_as_argument_still_works(path: str, arguments: list[str]) -> None:
    command = ALL[path]
    context = command.make_context(path, list(arguments), help_option_names=HELP_OPTIONS)
    assert sum(len(context.params[name]) for name in ("names", "files", "models") if name in context.params) == 1


@pytest.mark.parametrize("path", ALL)
def test_help_has_80_columns_and_describes_ranges_in_words(path: str) -> None:
    context = click.Context(ALL[path], info_name=path, terminal_width=80, help_option_names=HELP_OPTIONS)
    lines = ALL[path].get_help(context).splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "<=" in line or ">=" in line or "…" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "--temperature", "hot", "x"], "Invalid value for --temperature: must be a number, not 'hot'."),
        (["ask", "--seed", "1.5", "x"], "Invalid value for --seed: must be a whole number, not '1.5'."),
        (["ask", "--answers", "0", "x"], "Invalid value for --answers: must be from 1 to 64, not 0."),
        (["ask", "--answers", "9", "x"], "--answers: must be from 1 to 8, not 9. With --pick, up to 64 replies are"),
        (
            ["ask", "--budget", "lots", "x"],
            "Invalid value for --budget: must be a size such as 4GB, 1500MiB or 900000000, not 'lots'.",
        ),
        (["history", "list", "-n", "x"], "Invalid value for --limit: must be a whole number, not 'x'."),
        (["serve", "--port", "70000"], "Invalid value for --port: must be from 0 to 65535, not 70000."),
        (["plan", "--min-speed", "a" * 999], "Invalid value for --min-speed: must be a number, not 'aaa"),
    ],
)
def test_invalid_numbers_are_described_in_words(arguments: list[str], message: str, cli: Cli) -> None:
    result = cli(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"edgechat: {message}")
    assert len(result.stderr) < 250
