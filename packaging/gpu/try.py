"""Program of try.sh: installs edgechat and runs the steps of steps.py, each with a time limit, and sums them up.

Uses the standard library only, because edgechat is installed by the first step. A step is a process group of its own,
which is killed at the end of its time. Time that a step leaves is added to the next one. The limits of all steps and
the time to kill them are less than 8 minutes together, whatever hangs.

Environment variables: EDGECHAT_TRY_PYTHON names the Python of an environment that is ready, instead of wheels to
install; EDGECHAT_TRY_STEPS names the steps to run, separated by commas, which share the whole time.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Time limits in seconds. All models share the time of "replies".
LIMITS_S = {
    "install": 70.0, "self-test": 100.0, "replies": 140.0, "exhausted memory": 35.0, "bench speed": 60.0,
    "bench speculation": 45.0, "doctor": 10.0,
}  # fmt: skip
# Time to wait for the end of a killed step.
KILL_S = 1.0
REPLY_CHECKS = (
    "CPU", "GPU", "GPU: memory planned and used", "half and half", "half and half: memory planned and used",
    "prefill on the GPU", "chosen by speed",
)  # fmt: skip
STATES = ("PASS", "FAIL", "CUT", "SKIP")


class Step(NamedTuple):
    """A part of the trial with its own process, and the checks whose results it reports."""

    name: str
    title: str
    limit_s: float
    checks: tuple[str, ...]
    models: tuple[str, ...]


class Result(NamedTuple):
    """Result of a check; `state` is one of STATES."""

    check: str
    state: str
    figures: str

    def __str__(self) -> str:
        return f"{self.state}  {self.check}: {self.figures}"


def list_steps(models: Sequence[str], chosen: Sequence[str] = ()) -> list[Step]:
    """Return the steps with limits; a choice of steps shares the time of all. Raises ValueError for unknown names."""
    unknown = set(chosen) - set(LIMITS_S)
    if unknown:
        raise ValueError(f"unknown steps {', '.join(sorted(unknown))}; choose from {', '.join(LIMITS_S)}")
    names = [name for name in LIMITS_S if not chosen or name in chosen or name == "install"]
    spare = sum(LIMITS_S.values()) - sum(LIMITS_S[name] for name in names)
    shared_s = sum(LIMITS_S[name] for name in names if name != "install")
    steps = []
    for name in names:
        limit_s = LIMITS_S[name] * (1 if name == "install" or not shared_s else 1 + spare / shared_s)
        if name == "replies":
            for model in models:
                title = f"replies of {Path(model).name}"
                steps.append(Step(name, title, limit_s / len(models), REPLY_CHECKS, (model,)))
        else:
            steps.append(Step(name, name, limit_s, (name,), (models[-1],)))
    return steps


def read_arguments(arguments: Sequence[str]) -> tuple[str, Path, Path, list[str], str]:
    """Return kind of the package, wheels, output, models and llama-bench. Raises ValueError."""
    kind, wheels, output, *names = arguments
    end = names.index("--") if "--" in names else len(names)
    models, benches = names[:end], names[end + 1 :]
    for name in (wheels, *models, *benches):
        if not Path(name).exists():
            raise ValueError(f"{name} does not exist")
    if not models:
        raise ValueError("no model is named")
    bench = str(Path(benches[0]).resolve()) if benches else ""
    return kind, Path(wheels).resolve(), Path(output), [str(Path(name).resolve()) for name in models], bench


def run_limited(command: Sequence[str], log: Path, deadline: float, environment: dict[str, str]) -> int | None:
    """Run a command and append its output to `log`; return its exit code, None if it was killed at the deadline."""
    with log.open("ab") as file:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        except OSError as error:  # without an installation, there is no Python
            file.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group of a step, and wait for the end of the step for a moment."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILL_S)
    except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        pass


class Trial:
    """Runs steps, and keeps their results in files after each, so that an interrupted run leaves what it found."""

    def __init__(self, kind: str, wheels: Path, output: Path, models: Sequence[str], bench: str) -> None:
        self.kind, self.wheels, self.bench = kind, wheels, bench
        self.models = models
        output.mkdir(parents=True, exist_ok=True)
        self.output = output.resolve()
        self.python = os.environ.get("EDGECHAT_TRY_PYTHON", "")
        self.results: list[Result] = []
        self.started_at = time.monotonic()
        self.deadline = self.started_at
        self.environment = os.environ | {
            "EDGECHAT_HOME": str(self.output / "home"), "EDGECHAT_KEEP_ALIVE": "0", "EDGECHAT_ENGINE": "private",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1",
        }  # fmt: skip

    def run(self, step: Step) -> None:
        """Run a step until its end or its deadline, and add its results."""
        self.deadline += step.limit_s
        started_at = time.monotonic()
        name = step.title.replace(" ", "-")
        log, results_file = self.output / f"{name}.log", self.output / f"{name}.jsonl"
        for path in (log, results_file):
            path.unlink(missing_ok=True)
        code = self.install(log) if step.name == "install" else self.compute(step, log, results_file)
        elapsed_s = time.monotonic() - started_at
        results = {} if not results_file.exists() else read_results(results_file)
        for number, check in enumerate(step.checks):
            prefix = f"{step.title}, " if len(step.checks) > 1 else ""
            state, figures = results.get(check, ("", ""))
            if not state and step.name == "install" and code == 0:
                state, figures = "PASS", f"{self.kind} from {self.wheels}" if self.wheels else ""
            if not state:
                has_begun = all(earlier in results for earlier in step.checks[:number])
                state, figures = describe_missing(code, log, elapsed_s, has_begun=has_begun)
            self.results.append(Result(f"{prefix}{check}", state, figures))
            print(self.results[-1], flush=True)
        print(f"      ({step.title}: {elapsed_s:.0f} s)", flush=True)
        with (self.output / "report.md").open("a", encoding="utf-8") as report:
            text = log.read_text("utf-8", "replace") if log.exists() else ""
            report.write(f"\n## {step.title} ({elapsed_s:.0f} s)\n\n```\n{text}\n```\n")

    def compute(self, step: Step, log: Path, results_file: Path) -> int | None:
        """Run a step of steps.py."""
        left_s = max(0.0, self.deadline - time.monotonic())
        request = {
            "step": step.name, "model": step.models[0], "results": str(results_file), "left_s": left_s,
            "llama_bench": self.bench,
        }  # fmt: skip
        command = [self.python, "-X", "utf8", str(Path(__file__).with_name("steps.py")), json.dumps(request)]
        return run_limited(command, log, self.deadline, self.environment)

    def install(self, log: Path) -> int | None:
        """Install the wheels into a new environment, unless one is ready."""
        if self.python:
            return run_limited([self.python, "-m", "edgechat", "--version"], log, self.deadline, self.environment)
        names = [str(path) for path in sorted(self.wheels.glob(f"edgechat_{self.kind}*.whl"))]
        if not names:
            log.write_text(f"{self.wheels} has no package edgechat_{self.kind}\n", "utf-8")
            return 1
        environment = self.output / "venv"
        self.python = str(environment / "bin" / "python")
        pip = [self.python, "-m", "pip", "install", "--quiet", "--no-index"]
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [*pip, "--find-links", str(self.wheels), "edgechat[starter]"],
            [*pip, "--no-deps", *names],  # CUDA's libraries are those of the system, or are installed by the user
            [self.python, "-m", "edgechat", "--version"],
        ]
        for command in commands:
            code = run_limited(command, log, self.deadline, self.environment)
            if code != 0:
                return code
        return 0

    def finish(self) -> int:
        """Write and print the summary; return the exit code."""
        seconds = time.monotonic() - self.started_at
        counts = ", ".join(f"{sum(r.state == s for r in self.results)} {s}" for s in STATES)
        lines = [*map(str, self.results), "", f"{counts}; {seconds:.0f} s in all"]
        (self.output / "summary.txt").write_text("\n".join(lines) + "\n", "utf-8")
        machine = f"{self.kind}, {platform.machine()}, {platform.platform()}, {dt.date.today().isoformat()}"  # noqa: DTZ011
        rows = [f"| {r.check} | {r.state}: {r.figures.replace('|', '/')} |" for r in self.results]
        table = [f"{machine}; {seconds:.0f} s:", "", "| check | result |", "|---|---|", *rows]
        (self.output / "platforms.md").write_text("\n".join(table) + "\n", "utf-8")
        print("\nLines for docs/platforms.md:\n", *table, "\nSummary:\n", *lines, sep="\n", flush=True)
        return 0 if all(r.state in {"PASS", "SKIP"} for r in self.results) else 1


def read_results(path: Path) -> dict[str, tuple[str, str]]:
    """Return state and figures by check; a last line that was cut is left out."""
    whole, _, _ = path.read_text("utf-8", "replace").rpartition("\n")
    results = [json.loads(line) for line in whole.splitlines()]
    return {result["check"]: (result["state"], result["figures"]) for result in results}


def describe_missing(code: int | None, log: Path, elapsed_s: float, *, has_begun: bool) -> tuple[str, str]:
    """Return state and figures of a check without a result, after its step ended with `code` (None: was killed)."""
    if not has_begun:
        return "CUT" if code is None else "FAIL", "not reached"
    if code is None:
        return "CUT", f"not finished after {elapsed_s:.0f} s, when the time of the step was over"
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
    return "FAIL", f"ended with code {code}: {lines[-1][-200:] if lines else 'no output'}"


def main() -> int:
    """Run all steps; return 0 if no check failed and none was cut, 2 for wrong arguments."""
    try:
        trial = Trial(*read_arguments(sys.argv[1:]))
        chosen = [name.strip() for name in os.environ.get("EDGECHAT_TRY_STEPS", "").split(",") if name.strip()]
        steps = list_steps(trial.models, chosen)
    except (ValueError, OSError) as error:
        print(f"try: {error}", file=sys.stderr)
        return 2
    (trial.output / "report.md").write_text(f"# edgechat on a GPU\n\n{' '.join(sys.argv[1:])}\n", "utf-8")
    for step in steps:
        trial.run(step)
    return trial.finish()


if __name__ == "__main__":
    sys.exit(main())
