"""Compare the processor time of starts in two environments: startup.py PYTHON_WITHOUT PYTHON_WITH [PAIRS].

The environments differ in a GPU package, on a machine without such a GPU. Each pair runs both in alternating order.
User and system time of a program and of the children that it waited for count, because times of day say nothing on a
busy machine. Prints the median of the differences for each kind of start; the exit code is 1 if one is over the limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MAX_SLOWER_S = 0.005
MIN_PAIRS = 9
CHOOSE_BACKEND = """
from edgechat.runtime.backends import gpu_probe, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.gpu_device_test import Demand
bundle = find_bundle()
gpu_probe.check_gpu_modules(bundle, probe.choose_module(bundle)[0], demand=Demand())
"""
KINDS = {
    "edgechat --version": ("-m", "edgechat", "--version"),
    "choice of backends": ("-c", CHOOSE_BACKEND),
    "first token of the starter model": (
        # One thread: threads that wait for each other beside other programs would count, too.
        "-m", "edgechat", "ask", "-m", "starter", "--threads", "1", "--max-tokens", "1", "--temperature", "0", "Hi",
    ),
}  # fmt: skip

Measure = Callable[[Sequence[str], Mapping[str, str]], float]


def measure_cpu_s(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command and return its processor time in seconds. Raises RuntimeError if it fails."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)[:200]} failed: {output.read()[-500:].decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime


def compare(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], n_pairs: int,
    measure: Measure = measure_cpu_s,
) -> list[float]:  # fmt: skip
    """Return the differences of `n_pairs` pairs in seconds: the second command minus the first one.

    A first run of each, which tests backends and compiles Python files, does not count.
    """
    for command, environment in zip(commands, environments, strict=True):
        measure(command, environment)
    differences = []
    for number in range(n_pairs):
        times = [0.0, 0.0]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which] = measure(commands[which], environments[which])
        differences.append(times[1] - times[0])
    return differences


def main() -> int:
    """Compare all kinds of starts."""
    without, with_package = sys.argv[1:3]
    n_pairs = max(MIN_PAIRS, int(sys.argv[3]) if len(sys.argv) > 3 else 20)  # noqa: PLR2004
    is_slower = False
    with tempfile.TemporaryDirectory() as folder:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EDGECHAT_", "PYTHON"))}
        homes = [str(Path(folder) / name) for name in ("without", "with")]
        environments = [
            inherited | {"EDGECHAT_HOME": home, "EDGECHAT_KEEP_ALIVE": "0", "EDGECHAT_ENGINE": "private"}
            for home in homes
        ]
        for name, arguments in KINDS.items():
            commands = [[python, *arguments] for python in (without, with_package)]
            differences = compare(commands, environments, n_pairs)
            low, median, high = (1e3 * value for value in statistics.quantiles(differences, n=4))
            is_slower |= median > 1e3 * MAX_SLOWER_S
            print(f"{name}: {median:+.1f} ms of processor time (quartiles {low:+.1f} and {high:+.1f}; {n_pairs} pairs)")
    return int(is_slower)


if __name__ == "__main__":
    sys.exit(main())
