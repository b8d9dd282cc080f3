"""Run llama.cpp's tests of llama-server against `edgechat serve`, from the pinned source.

`python -m tests.serve.llama_cpp_suite.suite [ARGUMENTS OF PYTEST]` runs all tests, also those that do not apply, and
compares the outcomes with the list.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.archives import unpack
from tests.conftest import ROOT
from tests.llama_cpp import sdist

_TIMEOUT_S = 3600
_PARTS = ("/vendor/llama.cpp/tools/server/tests/", "/vendor/llama.cpp/models/templates/")


class Report(msgspec.Struct, frozen=True):
    """Result of a run: outcome and message of each test, reasons of tests that do not apply, entries without a test."""

    outcomes: dict[str, tuple[str, str]]
    not_applicable: dict[str, str]
    unmatched: list[str]


def run(
    directory: Path, verdicts: Path, arguments: Sequence[str] = (), *, runs_all: bool = False,
    max_cases: int = sys.maxsize,
) -> Report:  # fmt: skip
    """Unpack the tests into `directory` and run them. `verdicts` is a file with the results of backend self-tests.

    Of a parametrized test, at most `max_cases` cases run. With `runs_all`, tests that do not apply run, too.
    """
    unpack(sdist(), directory, _PARTS)
    tests = next(directory.glob("*/vendor/llama.cpp/tools/server/tests"))
    home = directory / "home"
    (home / "cache").mkdir(parents=True)
    shutil.copy(verdicts, home / "cache")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "EDGECHAT_HOME": str(home), "EDGECHAT_ENGINE": "private",
        "SUITE_REPORT": str(directory / "report.json"), "SUITE_RUNS_ALL": "1" if runs_all else "",
        "SUITE_MAX_CASES": str(max_cases),
    }  # fmt: skip
    # llama.cpp's own CI leaves out the slow tests, too; they download models of gigabytes.
    options = ["-v", "--tb=short", "-c", "pytest.ini", "-m", "not slow", "-p", "no:cacheprovider"]
    plugin = ["-p", "tests.serve.llama_cpp_suite.plugin"]
    command = [sys.executable, "-m", "pytest", *options, *plugin, *(arguments or ["unit"])]
    log = directory / "log.txt"
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=tests, env=environment, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    report = directory / "report.json"
    if done.returncode not in {0, 1} or not report.exists():
        raise RuntimeError(log.read_text("utf-8", "replace")[-8000:])
    return msgspec.json.decode(report.read_bytes(), type=Report)


def main() -> None:
    """Print the outcomes that differ from the list, and the number of tests by outcome and by reason."""
    with tempfile.TemporaryDirectory() as scratch:
        print(f"The output is in {scratch}/log.txt.", flush=True)
        verdicts = Path(scratch) / "doctor" / "cache" / "backends.json"
        environment = os.environ | {"EDGECHAT_HOME": str(verdicts.parent.parent)}
        program = str(Path(sys.executable).parent / "edgechat")
        subprocess.run([program, "doctor", "--json"], env=environment, check=True, stdout=subprocess.DEVNULL)
        report = run(Path(scratch), verdicts, sys.argv[1:], runs_all=True)
    for name, (outcome, message) in sorted(report.outcomes.items()):
        if name not in report.not_applicable and outcome != "passed":
            print(f"{outcome}, but not in the list: {name}\n{message}\n")
        elif name in report.not_applicable and outcome == "passed":
            print(f"passed, but in the list: {name} ({report.not_applicable[name]})")
    for entry in report.unmatched if len(sys.argv) == 1 else ():
        print(f"no such test: {entry}")
    print(json.dumps(Counter(outcome for outcome, _ in report.outcomes.values()), indent=1))
    print(json.dumps(Counter(report.not_applicable.values()), indent=1))


if __name__ == "__main__":
    main()
