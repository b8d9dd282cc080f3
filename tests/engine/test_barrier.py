"""The barrier of the CPU modules, alone: threads that wait, sleep and wake in millions of rounds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import scale

SOURCE = Path(__file__).parents[2] / "native" / "fuzz" / "barrier.c"
N_ROUNDS = 10_000_000
"""Rounds of all numbers of threads together."""


@pytest.fixture(params=["plain", "thread"], scope="module")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the stress test, without and with the thread sanitizer."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("needs a C compiler with POSIX threads")
    directory = tmp_path_factory.mktemp("barrier")
    command = [compiler, "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    if request.param == "thread":
        command.append("-fsanitize=thread")
        empty = directory / "empty.c"
        empty.write_text("int main(void) { return 0; }\n")
        compiled = subprocess.run([*command, str(empty), "-o", str(directory / "empty")], check=False)
        if compiled.returncode or subprocess.run([str(directory / "empty")], check=False).returncode:
            pytest.skip("programs with the thread sanitizer cannot be compiled or do not run")
    subprocess.run([*command, str(SOURCE), "-o", str(directory / "barrier")], check=True)
    return directory / "barrier"


def test_spinning_follows_the_length_of_the_waits(program: Path) -> None:
    subprocess.run([str(program), "spin"], check=True)


@pytest.mark.parametrize("length", [0, 2000])
@pytest.mark.parametrize("n_threads", [2, 3, 4, 8])
def test_threads_see_what_others_wrote_before_the_barrier(program: Path, n_threads: int, length: int) -> None:
    run(program, n_threads, 2000, length)


@pytest.mark.long
@pytest.mark.parametrize("n_threads", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("program", ["thread"], indirect=True)
def test_millions_of_rounds(program: Path, n_threads: int) -> None:
    run(program, n_threads, scale(N_ROUNDS // 7), 0)


def run(program: Path, n_threads: int, n_rounds: int, length: int) -> None:
    """Run the stress test. Raises AssertionError for a wrong value or a report of the sanitizer."""
    result = subprocess.run(
        [str(program), str(n_threads), str(n_rounds), str(length)],
        check=False,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
