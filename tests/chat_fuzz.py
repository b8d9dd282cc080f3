"""Fuzz the chat library: `python -m tests.chat_fuzz [--library FILE] [--count N]`.

Each input is sent to the library in a child process, which is replaced when it dies or takes too long. The same seed
makes the same inputs. CONTRIBUTING.md describes how to use a library with sanitizers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from edgechat.hardware.memory import read_process_usage
from edgechat.prompt.sandbox import STACK_BYTES, limit_memory
from edgechat.runtime.backends.bundle import find_bundle
from tests.chat_mutations import make_request
from tests.llama_cpp import read_chat_cases

KINDS: Final = {"template": 20_000, "request": 20_000, "output": 200_000, "long-output": 5_000}
"""Number of inputs of a full run, by kind."""
_WARM_UP_INPUTS: Final = 300
_START_TIMEOUT_S: Final = 60.0
_SANITIZER_OPTIONS: Final = (
    "detect_leaks=0:quarantine_size_mb=16:detect_stack_use_after_return=0:allocator_may_return_null=1:"
    "max_allocation_size_mb=1024:soft_rss_limit_mb=1500:alloc_dealloc_mismatch=0"
)
_INPUTS_PER_MEASUREMENT: Final = 50


@dataclass
class Report:
    """Result of the inputs of one kind."""

    n_inputs: int = 0
    crashes: list[tuple[int, str]] = field(default_factory=list)
    """Number of each input that ended the process, with the end of its standard error."""
    hangs: list[int] = field(default_factory=list)
    n_errors: int = 0
    """Number of inputs to which the library replied with an error."""
    slowest_s: float = 0.0
    """Processor time of the slowest input with a reply."""
    slowest_input: int = -1
    growth_bytes: int = 0
    """Greatest growth of one process after its first inputs."""

    def add(self, number: int, duration_s: float, *, is_error: bool) -> None:
        """Add an input with a reply."""
        self.n_inputs += 1
        self.n_errors += is_error
        if duration_s > self.slowest_s:
            self.slowest_s, self.slowest_input = duration_s, number
        if self.n_inputs % 1000 == 0:
            numbers = [number for number, _ in self.crashes]
            print(f"{self.n_inputs} inputs done, crashes {numbers}, stopped {self.hangs}", file=sys.stderr, flush=True)


def run(kind: str, inputs: range, *, library: Path, seed: int, timeout_s: float, sanitizer: str = "") -> Report:
    """Send inputs of a kind to the library. `sanitizer` has the runtime libraries of the sanitizers in `library`."""
    read_chat_cases()  # the first time, they are compiled
    report = Report()
    start = inputs.start
    while start < inputs.stop:
        child = _Child([kind, str(library), str(seed), str(start), str(inputs.stop)], sanitizer)
        start = _read_results(child, report, range(start, inputs.stop), timeout_s)
    return report


class _Child:
    """A process that sends inputs to the library."""

    def __init__(self, arguments: list[str], sanitizer: str) -> None:
        environment = os.environ | {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": _SANITIZER_OPTIONS}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chat_fuzz", "--serve", *arguments, "1" if sanitizer else "0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment if sanitizer else None,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Lines of the standard output; "" at its end."""
        self._messages: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=_read_lines, args=(self._process.stdout, self.lines.put)),
            threading.Thread(target=_read_errors, args=(self._process.stderr, self._messages)),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> str:
        """End the process, and return its exit code and standard error."""
        self._process.kill()
        exit_code = self._process.wait()
        for thread in self._threads:
            thread.join()
        for file in (self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()
        return f"exit code {exit_code}: {''.join(self._messages)}"


def _read_results(child: _Child, report: Report, inputs: range, timeout_s: float) -> int:
    """Read results until all inputs are done, the process dies or hangs; return the number of the next input."""
    number, first_bytes = inputs.start, 0
    is_hung = False
    try:
        while child.lines.get(timeout=timeout_s + _START_TIMEOUT_S) and (line := child.lines.get(timeout=timeout_s)):
            duration_s, n_bytes, is_error = line.split()
            report.add(number, float(duration_s), is_error=is_error == "True")
            if number - inputs.start >= _WARM_UP_INPUTS and int(n_bytes):
                first_bytes = first_bytes or int(n_bytes)
                report.growth_bytes = max(report.growth_bytes, int(n_bytes) - first_bytes)
            number += 1
    except queue.Empty:
        is_hung = True
    message = child.end()
    if number == inputs.stop:
        return number
    report.n_inputs += 1
    if is_hung:
        report.hangs.append(number)
    else:
        report.crashes.append((number, message))
    return number + 1


def _read_lines(file: IO[str], put: Any) -> None:
    for line in file:
        put(line)
    put("")


def _read_errors(file: IO[str], messages: list[str]) -> None:
    """Collect the beginning of a sanitizer's report, or else the last lines."""
    is_report = False
    for line in file:
        if not is_report and ("ERROR: " in line or "runtime error: " in line):
            is_report = True
            messages.clear()
        if not is_report:
            del messages[:-20]
        frame = line.partition(" in ")[2][:200]
        if len(messages) < 30 and not (frame and any(frame in message for message in messages)):
            messages.append(line[:300])  # the frames of a recursion are shown once


class _Library:
    """The library, called directly, and with the parsers of its `apply` replies."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self._call, self._free = library.edgechat_chat_call, library.edgechat_chat_free
        self._call.argtypes, self._call.restype = [ctypes.c_char_p], ctypes.c_void_p
        self._free.argtypes = [ctypes.c_void_p]
        self._key = ""
        self._applied: dict[str, Any] = {}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        pointer = self._call(json.dumps(request).encode())
        reply: dict[str, Any] = json.loads(ctypes.string_at(pointer))
        self._free(pointer)
        return reply

    def add_parser(self, request: dict[str, Any]) -> dict[str, Any]:
        """Replace the `apply` request of a `parse` request by the parser that it describes."""
        apply = request.pop("apply")
        key = json.dumps(apply)
        if key != self._key:
            self._key, self._applied = key, self.call(apply)
        applied = self._applied
        names = ("parser", "format", "generation_prompt")
        return request | {name: applied.get(name, 0 if name == "format" else "") for name in names}


def _serve(kind: str, library_path: str, seed: int, inputs: range, *, limits_memory: bool) -> None:
    """Send inputs to the library; print the number of each before, and its processor time and the memory after it."""
    if limits_memory:
        limit_memory()
    library = _Library(library_path)
    for number in inputs:
        request = make_request(kind, number, seed)
        if request["op"] == "parse":
            request = library.add_parser(request)
        print(number, flush=True)
        started_s = time.thread_time()
        reply = library.call(request)
        duration_s = time.thread_time() - started_s
        n_bytes = _read_memory() if number % _INPUTS_PER_MEASUREMENT == 0 else 0
        print(duration_s, n_bytes, "error" in reply, flush=True)


def _read_memory() -> int:
    """Return the memory of this process in bytes, without memory that was freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    return read_process_usage(os.getpid())[1]


def _main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        kind, path, *numbers = sys.argv[2:]
        seed, start, stop, is_sanitized = map(int, numbers)
        threading.stack_size(STACK_BYTES * (8 if is_sanitized else 1))
        arguments = (kind, path, seed, range(start, stop))
        server = threading.Thread(target=_serve, args=arguments, kwargs={"limits_memory": not is_sanitized})
        server.start()
        server.join()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="library with sanitizers (default: that of the native bundle)")
    parser.add_argument("--kind", choices=KINDS, help="kind of inputs (default: all)")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--count", type=int, help="number of inputs (default: those of a full run)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=10.0, help="longest time of an input in seconds")
    options = parser.parse_args()
    sanitizer = ""
    if options.library:
        names = ("libasan.so", "libstdc++.so")
        sanitizer = " ".join(
            subprocess.run(
                ["c++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
            ).stdout.strip()
            for name in names
        )
    library = options.library or Path(find_bundle().directory) / "libedgechat-chat.so"
    for kind in [options.kind] if options.kind else KINDS:
        inputs = range(options.start, options.start + (options.count or KINDS[kind]))
        report = run(kind, inputs, library=library, seed=options.seed, timeout_s=options.timeout, sanitizer=sanitizer)
        print(
            f"{kind}: {report.n_inputs} inputs, {report.n_errors} errors, {len(report.crashes)} crashes, "
            f"{len(report.hangs)} stopped after {options.timeout:g} s {report.hangs[:10]}, slowest other input: "
            f"{report.slowest_input} in {report.slowest_s:.2f} s, growth {report.growth_bytes >> 20} MiB"
        )
        for number, message in report.crashes:
            print(f"{kind} {number}: {message}")


if __name__ == "__main__":
    _main()
