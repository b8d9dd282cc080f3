"""Random schemas with extreme values: compiling and enforcing each of them ends, and takes limited memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgechat.engine import grammar_compiler
from edgechat.engine.grammar_compiler import GrammarChecker
from edgechat.errors import EdgechatError, GrammarError
from edgechat.hardware.memory import read_process_usage
from edgechat.prompt.json_schemas import make_json_rule
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.grammar import compile_grammar
from edgechat.runtime.model import Model
from tests.engine.conftest import native as native  # noqa: PLC0414  (a fixture)
from tests.fuzzing import scale
from tests.hostile_schemas import Schema, make_schema

N_SCHEMAS = scale(2000)
N_STEPS = 12
MAX_CPU_S = 60.0
"""Much more than a busy machine needs; without the limits of the check, a schema can take hours."""
MAX_BYTES = 300 << 20


class Meter:
    """CPU time of this process and of the checker's child, and the growth of both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.child_cpu_s = 0.0
        self.child_bytes = 0

        def read_and_record(pid: int) -> tuple[float, int]:
            cpu_s, n_bytes = read_process_usage(pid)
            self.child_cpu_s, self.child_bytes = max(self.child_cpu_s, cpu_s), max(self.child_bytes, n_bytes)
            return cpu_s, n_bytes

        monkeypatch.setattr(grammar_compiler, "read_process_usage", read_and_record)


def find_error(model: Model, checker: GrammarChecker, schema: Schema, seed: int) -> EdgechatError | None:
    """Return the error of a schema that is compiled as in the engine, and then accepts some random tokens."""
    try:
        enforce(model, checker, schema, seed)
    except EdgechatError as error:
        return error
    return None


def enforce(model: Model, checker: GrammarChecker, schema: Schema, seed: int) -> None:
    text = f"start: {make_json_rule(schema, 'schema')}\n"
    checker.check(text)
    grammar, rng = compile_grammar(model, text), np.random.default_rng(seed)
    for _ in range(N_STEPS):
        logits = rng.random(model.n_vocab, dtype=np.float32)
        with grammar.mask_disallowed(logits):
            token = int(logits.argmax())
        if model.is_eog(token):
            return
        grammar.accept(token)


@pytest.mark.long
def test_no_schema_takes_a_minute_or_300_mib(native: Bindings, starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checker, meter = Model(native, starter), GrammarChecker(), Meter(monkeypatch)
    enforce(model, checker, {}, 0)  # creates the tokeniser
    n_enforced = 0
    slowest, largest = (0.0, -1), (0, -1)
    process = psutil.Process()
    for seed in range(N_SCHEMAS):
        schema = make_schema(seed)
        child = checker._child
        start_child_s, start_child_bytes = read_process_usage(child.pid) if child is not None else (0.0, 0)
        meter.child_cpu_s, meter.child_bytes = start_child_s, start_child_bytes
        start_bytes, start_s = process.memory_info().rss, time.process_time()
        error = find_error(model, checker, schema, seed)
        n_enforced += error is None
        assert error is None or isinstance(error, GrammarError), (seed, error)  # no fault of the library
        assert "\n" not in str(error), (seed, error)
        assert len(str(error)) < 700, (seed, error)
        cpu_s = time.process_time() - start_s + meter.child_cpu_s - start_child_s
        n_bytes = max(0, process.memory_info().rss - start_bytes) + meter.child_bytes - start_child_bytes
        slowest, largest = max(slowest, (cpu_s, seed)), max(largest, (n_bytes, seed))
        assert cpu_s < MAX_CPU_S, seed
        assert n_bytes < MAX_BYTES, seed
    checker.stop()
    print(  # noqa: T201  (figures for `pytest -s`)
        f"\nslowest: {slowest[0]:.2f} s (seed {slowest[1]}), largest: {largest[0] >> 20} MiB (seed {largest[1]}), "
        f"enforced: {n_enforced}"
    )
    assert n_enforced > N_SCHEMAS // 10
