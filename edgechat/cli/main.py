"""Entry point of the program and of its child processes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Final

from edgechat import __version__
from edgechat.process import EXIT_VERSION_CHANGED, HIDDEN_COMMANDS

# Commands that render a prompt unless they fail.
_COMMANDS_WITH_PROMPTS: Final = ("ask", "do", "explain", "commit")


def main() -> None:
    """Run the hidden subcommand of a child process, the chat, or another command, and exit."""
    ensure_standard_streams()
    if len(sys.argv) > 1 and sys.argv[1] in HIDDEN_COMMANDS:
        sys.exit(_run_child(sys.argv[1], sys.argv[2:]))
    try:
        if len(sys.argv) == 1 and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            sys.exit(_start_chat())
        if sys.argv[1:2] and sys.argv[1] in _COMMANDS_WITH_PROMPTS and not {"-h", "--help"}.intersection(sys.argv):
            from edgechat.prompt import early_process

            early_process.start()
        from edgechat.cli.root import run

        sys.exit(run())
    except KeyboardInterrupt:  # Ctrl-C during the imports
        sys.exit(130)
    finally:
        from edgechat.terminal import discard_broken_output

        discard_broken_output()


def _start_chat() -> int:
    """Run the chat without importing click, which would delay the first frame, and return the exit code."""
    from edgechat.errors import EdgechatError, describe_failure

    try:
        from edgechat.cli.chat import run_chat

        return run_chat()
    except (EdgechatError, OSError, UnicodeError, MemoryError) as error:
        from edgechat.terminal import escape_controls

        message, exit_code = describe_failure(error)
        print(f"edgechat: {escape_controls(message)}", file=sys.stderr)
        return exit_code


def ensure_standard_streams() -> None:
    """Make the standard streams usable: open closed streams, make them blocking, and replace unencodable characters.

    Some services start programs with closed streams. Without the null device in their place, a pipe to a child process
    could get the file descriptor of a standard stream, and would be closed in the child. Some programs pass on
    non-blocking streams, in which Python would treat a pause as the end of the input, and lose output if the reader is
    slow.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  (stays open)
        # Windows before Python 3.12 raises AttributeError, and a stream without a file raises ValueError.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.set_blocking(getattr(sys, name).fileno(), True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # most replies contain characters beyond ASCII


def _run_child(name: str, arguments: list[str]) -> int:
    version, *arguments = arguments or [""]
    if version != __version__:
        return EXIT_VERSION_CHANGED
    # Without this variable, ggml attaches a debugger to a child that aborts, which takes up to 10 s and fills the log.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if name == "_engine":
        from edgechat.engine.server import main as child
    elif name == "_grammar":
        from edgechat.engine.grammar_check import main as child
    elif name == "_selftest":
        from edgechat.runtime.backends.selftest import main as child
    elif name == "_speeds":
        from edgechat.runtime.backends.kernel_benchmark import main as child
    elif name == "_quantise":
        from edgechat.runtime.quantize import main as child
    elif name in {"_case", "_busy", "_kv", "_divergence"}:
        return _import_benchmark(name)(arguments)
    elif name == "_import":
        from edgechat.store.import_process import main as child
    elif name == "_extract":
        from edgechat.documents.extraction.worker import main as child
    else:
        from edgechat.prompt.sandbox import main as child
    return child(arguments)


def _import_benchmark(name: str) -> Callable[[list[str]], int]:
    """Import the main function of a benchmark's child process."""
    if name == "_case":
        from edgechat.bench.memory import case_main as child
    elif name == "_busy":
        from edgechat.bench.busy import busy_main as child
    elif name == "_divergence":
        from edgechat.bench.quant_divergence import main as child
    else:
        from edgechat.bench.kv_measure import main as child
    return child
