"""Commands of many tests in this folder run in the process of the tests, because a new one takes 0.2 s of CPU time.

The tests in `tests/cli`, and those here that need real pipes or engines, run the installed program.
"""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from edgechat.cli import root
from tests.conftest import Cli

_MODULES_WITHOUT_PROCESSES = (
    "test_config",
    "test_explain",
    "test_help",
    "test_history",
    "test_remotes",
    "test_root",
    "test_uninstall",
)


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Cli:
    """Return a function that runs a command without a terminal; with options of subprocess.run, as a new process."""
    if request.path.stem not in _MODULES_WITHOUT_PROCESSES:
        return cli

    def run(*arguments: str, input: str = "", **options: object) -> subprocess.CompletedProcess[str]:  # noqa: A002
        if options:
            return cli(*arguments, **options)
        streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8") for name in ("stdout", "stderr")}
        with monkeypatch.context() as context:
            context.setattr(sys, "argv", ["edgechat", *arguments])
            context.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode()), "utf-8"))
            for name, stream in streams.items():
                context.setattr(sys, name, stream)
            try:
                exit_code = root.run()
            except SystemExit as error:
                exit_code = error.code if isinstance(error.code, int) else 1
        texts = {}
        for name, stream in streams.items():
            stream.flush()
            stream.seek(0)
            texts[name] = stream.read()
        return subprocess.CompletedProcess(arguments, exit_code, **texts)

    return run
