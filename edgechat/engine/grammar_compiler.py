"""Compilation of grammars on a thread of the engine, after a check in a child process with limited time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

import msgspec

from edgechat.engine.grammar_check import CHECK_STACK_BYTES, CheckReply, describe_fault
from edgechat.engine.pipe import Channel, kill_child, make_frame, spawn_child, start_exchange
from edgechat.errors import EdgechatError, EngineError, GrammarError, find_error_class
from edgechat.hardware.memory import read_process_usage
from edgechat.process import KILL_SIGNAL
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.backends.probe import describe_exit
from edgechat.runtime.grammar import (
    MAX_GRAMMAR_CHARS,
    MAX_TOOL_GRAMMAR_CHARS,
    Grammar,
    check_length,
    require_llguidance,
)
from edgechat.runtime.tool_grammar import MAX_GBNF_CHARS, ToolGrammar
from edgechat.runtime.triggered_grammar import convert_tool_grammar

# Limits of a check. The slowest of the schemas of 12 public MCP servers takes 0.05 s on a server core and grows the
# process by 2 MB. A Raspberry Pi 4 is about ten times slower.
MAX_CPU_S: Final = 2.0
MAX_GROWTH_BYTES: Final = 64 << 20
# A machine on which two seconds of CPU time take a minute is overloaded, which is not the fault of the grammar.
MAX_WALL_S: Final = 60.0
_POLL_INTERVAL_S: Final = 0.02
_MAX_CACHED_RESULTS: Final = 256
_SIMPLIFY_HINT: Final = (
    "Simplify it. Large values of multipleOf, long repetitions in patterns and long chains of $ref cost the most."
)

# Stack for compiling in the engine. It is larger than the stack of the check, because the engine has more nested calls.
_STACK_BYTES: Final = 4 * CHECK_STACK_BYTES

Compile = Callable[[str, Sequence[str]], Grammar]


class GrammarChecker:
    """Checks grammars in a child process, one at a time, and remembers the results."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._replies: OrderedDict[bytes, CheckReply] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, grammar: str, max_chars: int = MAX_GRAMMAR_CHARS) -> None:
        """Compile `grammar`, which has at most `max_chars` characters, in the child process.

        Raises GrammarError if the grammar is invalid or exceeds a limit, and EngineError if the check fails for another
        reason, for example because `stop` was called.
        """
        check_length(grammar, max_chars)
        key = hashlib.sha256(grammar.encode("utf-8")).digest()
        reply = self._replies.get(key)
        if reply is None:
            reply = self._check_in_child(grammar)
            self._replies[key] = reply
            if len(self._replies) > _MAX_CACHED_RESULTS:
                self._replies.popitem(last=False)
        if reply.error_type:
            raise find_error_class(reply.error_type)(reply.message)

    def _check_in_child(self, grammar: str) -> CheckReply:
        child, channel = self._start()
        start_cpu_s, start_bytes = read_process_usage(child.pid)
        replies = start_exchange(channel, make_frame(grammar.encode("utf-8")))
        deadline = time.monotonic() + MAX_WALL_S
        while True:
            with contextlib.suppress(queue.Empty):
                body = replies.get(timeout=_POLL_INTERVAL_S)
                break
            cpu_s, n_bytes = read_process_usage(child.pid)
            excess = ""
            if cpu_s - start_cpu_s > MAX_CPU_S:
                excess = f"{MAX_CPU_S:g} s of CPU time"
            elif n_bytes - start_bytes > MAX_GROWTH_BYTES:
                excess = f"{MAX_GROWTH_BYTES >> 20} MiB of memory"
            if excess:
                self.stop()
                message = f"The output format is too complex: compiling it takes more than {excess}. {_SIMPLIFY_HINT}"
                return CheckReply(GrammarError.__name__, message)
            if time.monotonic() > deadline:
                self.stop()
                raise EngineError(f"The output format was not compiled within {MAX_WALL_S:g} s. Try again later.")
        if body is not None:
            return msgspec.msgpack.decode(body, type=CheckReply)
        return self._describe_death(child)

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        """Return the child process, which is started if it is not running. Raises EngineError if it does not start."""
        with self._lock:
            if self._child is not None and self._channel is not None and self._child.poll() is None:
                return self._child, self._channel
            self._child, self._channel = child, channel = spawn_child(["_grammar"], subprocess.DEVNULL)
        with contextlib.suppress(queue.Empty):
            if start_exchange(channel, b"").get(timeout=MAX_WALL_S) is not None:
                return child, channel
        self.stop()
        raise EngineError("The process that checks output formats did not start. Try again later.")

    def _describe_death(self, child: subprocess.Popen[bytes]) -> CheckReply:
        """Return the result of a check during which the child died. Raises EngineError if the child was killed."""
        with self._lock:
            was_stopped = self._child is not child
        self.stop()
        exit_code = child.wait()
        if was_stopped or exit_code == -KILL_SIGNAL:
            raise EngineError("The check of the output format was stopped. Send the request again.")
        message = (
            f"The output format is too complex: compiling it crashed with {describe_exit(exit_code)}. {_SIMPLIFY_HINT}"
        )
        return CheckReply(GrammarError.__name__, message)

    def stop(self) -> None:
        """Kill the child process, which ends a running check. Thread-safe. The next check starts a new process."""
        with self._lock:
            child, self._child = self._child, None
            channel, self._channel = self._channel, None
        if child is not None and channel is not None:
            kill_child(child, channel)


class CompiledGrammar(NamedTuple):
    """A grammar, and the source that it was compiled from."""

    source: str | ToolGrammar
    grammar: Grammar


class _Job(NamedTuple):
    sources: Sequence[str | ToolGrammar]
    text_tokens: Sequence[str]
    result: Future[CompiledGrammar]


class GrammarCompiler:
    """Compiles grammars one at a time in a separate thread, while the engine continues to decode."""

    def __init__(self, compile_checked: Compile) -> None:
        """Create a compiler; `compile_checked(grammar, text_tokens)` compiles a grammar that passed the check."""
        self._compile = compile_checked
        self._checker = GrammarChecker()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: Future[CompiledGrammar] | None = None
        self._lock = threading.Lock()

    def submit(self, sources: Sequence[str | ToolGrammar], text_tokens: Sequence[str]) -> Future[CompiledGrammar]:
        """Queue the compilation of the first of `sources` that can be compiled.

        The exception of the result is the GrammarError of the first source, or an EngineError for another failure.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            default_size = threading.stack_size(_STACK_BYTES)
            try:
                self._thread.start()
            finally:
                threading.stack_size(default_size)
        job = _Job(sources, text_tokens, Future())
        self._jobs.put(job)
        return job.result

    def cancel(self, result: Future[CompiledGrammar]) -> None:
        """Cancel the compilation with this result; a check that is running ends at once."""
        result.cancel()
        with self._lock:
            if self._running is result:
                self._checker.stop()

    def close(self) -> None:
        """Cancel the running compilation and end the thread and the child process."""
        self._jobs.put(None)
        self._checker.stop()
        if self._thread is not None:
            self._thread.join()
        self._checker.stop()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if not job.result.set_running_or_notify_cancel():
                    continue
                self._running = job.result
            try:
                require_llguidance()
                compiled = self._compile_first(job)
            except (EdgechatError, MemoryError) as error:
                job.result.set_exception(error)
            except BaseException as error:  # noqa: BLE001  (a panic of llguidance is a BaseException)
                job.result.set_exception(EngineError(describe_fault(error)))
            else:
                job.result.set_result(compiled)
            with self._lock:
                self._running = None

    def _compile_first(self, job: _Job) -> CompiledGrammar:
        first_error: GrammarError | None = None
        for source in job.sources:
            try:
                lark, max_chars = _convert(source)
                self._checker.check(lark, max_chars)
                with activity.during(Activity.COMPILING_GRAMMAR):
                    return CompiledGrammar(source, self._compile(lark, job.text_tokens))
            except GrammarError as error:  # noqa: PERF203  (the errors of at most four grammars)
                first_error = first_error or error
                print(error, file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        raise first_error or GrammarError("The request has no grammar.")


def _convert(source: str | ToolGrammar) -> tuple[str, int]:
    """Return a grammar in Lark and the maximum length of this kind of grammar. Raises GrammarError."""
    if isinstance(source, str):
        return source, MAX_GRAMMAR_CHARS
    check_length(source.gbnf, MAX_GBNF_CHARS)
    return convert_tool_grammar(source), MAX_TOOL_GRAMMAR_CHARS
