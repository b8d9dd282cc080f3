"""Checks of grammars in a child process: limits, crashes, cancellation, and what the engine compiles afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psutil
import pytest

from edgechat.engine import grammar_compiler
from edgechat.engine.grammar_compiler import GrammarChecker, GrammarCompiler
from edgechat.errors import EngineError, GrammarError
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS, Grammar
from tests.time_limit import HANG_S
from tests.waiting import until

ENDLESS = {"type": "integer", "multipleOf": 99999989}
REFERENCES = {
    "$ref": "#/$defs/a0",
    "$defs": {**{f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}, "a5000": {"type": "string"}},
}


def schema(value: Any) -> str:
    return f"start: %json {json.dumps(value)}"


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker()
    yield checker
    checker.stop()


@pytest.mark.parametrize(
    "value",
    [
        ENDLESS,
        {"type": "integer", "multipleOf": 1000003},
        {"type": "number", "allOf": [{"multipleOf": n} for n in (9973, 9967, 9949, 9941)]},
    ],
)
def test_schema_that_takes_too_long_or_too_much_memory_is_refused(
    checker: GrammarChecker, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker.check(schema({}))
    message = r"takes more than (0\.3 s of CPU time|64 MiB of memory)\. Simplify"
    with monkeypatch.context() as context:
        context.setattr(grammar_compiler, "MAX_CPU_S", 0.3)
        with pytest.raises(GrammarError, match=message) as caught:
            checker.check(schema(value))
    assert "\n" not in str(caught.value)
    checker.check(schema({"type": "string"}))  # in a new process
    checker.stop()
    monkeypatch.setattr(grammar_compiler, "spawn_child", lambda *_: pytest.fail("the result is not remembered"))
    with pytest.raises(GrammarError, match="takes more than"):
        checker.check(schema(value))


def test_memory_limit_is_reported_with_its_number(checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_CPU_S", 1000.0)
    monkeypatch.setattr(grammar_compiler, "MAX_GROWTH_BYTES", 16 << 20)
    with pytest.raises(GrammarError, match="more than 16 MiB of memory"):
        checker.check(schema(ENDLESS))


def test_stack_overflow_of_the_compiler_is_an_error_of_the_schema(checker: GrammarChecker) -> None:
    with pytest.raises(GrammarError, match=r"crashed with SIG\w+ .*chains of \$ref"):
        checker.check(schema(REFERENCES))
    checker.check(schema({}))


def test_invalid_and_long_grammars_are_refused(checker: GrammarChecker) -> None:
    with pytest.raises(GrammarError, match=r'^The output format cannot be enforced: Unimplemented keys: \["not"\]$'):
        checker.check(schema({"not": {}}))
    with pytest.raises(GrammarError, match=r"regex parse error: .*unclosed group"):
        checker.check(schema({"type": "string", "pattern": "(a"}))
    with pytest.raises(GrammarError, match=f"the limit is {MAX_GRAMMAR_CHARS}"):
        checker.check("start: " + '"a" ' * MAX_GRAMMAR_CHARS)


@pytest.fixture
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check run until the test ends it, also on a machine that stops the test for a while."""
    monkeypatch.setattr(grammar_compiler, "MAX_CPU_S", 1000.0)
    monkeypatch.setattr(grammar_compiler, "MAX_GROWTH_BYTES", 1 << 40)


@pytest.mark.usefixtures("no_limits")
def test_process_that_was_killed_by_the_system_is_no_error_of_the_schema(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker.check(schema({}))
    child = checker._child
    assert child is not None
    errors: list[Exception] = []

    def check() -> None:
        try:
            checker.check(schema(ENDLESS))
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    process = psutil.Process(child.pid)
    busy_s = process.cpu_times().user
    until(lambda: process.cpu_times().user > busy_s + 0.1)
    process.kill()
    thread.join()
    assert "was stopped" in str(errors[0])
    monkeypatch.setattr(grammar_compiler, "MAX_CPU_S", 0.1)
    with pytest.raises(GrammarError):  # a killed check is not remembered as a result
        checker.check(schema(ENDLESS))


@pytest.mark.usefixtures("no_limits")
def test_cancelled_compilation_ends_at_once_and_the_next_one_runs() -> None:
    compiled: list[str] = []
    result = cast("Grammar", object())

    def compile_checked(grammar: str, _text_tokens: Sequence[str]) -> Grammar:
        compiled.append(grammar)
        return result

    compiler = GrammarCompiler(compile_checked)
    try:
        assert compiler.submit([schema({})], ()).result(HANG_S).grammar is result
        endless, waiting, simple = (compiler.submit([g], ()) for g in (schema(ENDLESS), schema(True), schema({})))
        until(endless.running)
        compiler.cancel(waiting)
        compiler.cancel(endless)
        assert simple.result(HANG_S).grammar is result
        assert not isinstance(endless.exception(0), GrammarError)  # it did not reach its limit
        assert waiting.cancelled()
        assert compiled == [schema({}), schema({})]
    finally:
        compiler.close()


def test_first_grammar_that_compiles_is_used() -> None:
    result = cast("Grammar", object())
    compiler = GrammarCompiler(lambda _grammar, _text_tokens: result)
    try:
        weaker = schema({"type": "object"})
        compiled = compiler.submit([schema({"not": {}}), weaker, schema({})], ()).result(HANG_S)
        assert compiled == (weaker, result)
        with pytest.raises(GrammarError, match="not"):  # the error of the first one
            compiler.submit([schema({"not": {}}), "start: nothing"], ()).result(HANG_S)
    finally:
        compiler.close()


@pytest.mark.usefixtures("no_limits")
def test_close_ends_a_running_check() -> None:
    compiler = GrammarCompiler(lambda grammar, _text_tokens: cast("Grammar", grammar))
    endless = compiler.submit([schema(ENDLESS)], ())
    until(endless.running)
    compiler.close()
    assert isinstance(endless.exception(0), EngineError)
