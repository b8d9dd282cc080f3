"""Ends and restarts of the engine process, with scripted processes."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import ComputeError, EngineDiedError
from edgechat.planner.load_plan import LoadPlan, make_manual_plan
from tests.time_limit import HANG_S

PLAN = make_manual_plan("/models/m.gguf", n_threads=1, n_ctx=64)


class Process:
    """Engine process that answers each request with an error."""

    n_loads = 1
    peak_n_ctx = 0

    def __init__(self, number: int, error: EngineDiedError | None = None) -> None:
        self.number, self.error = number, error
        self.link = SimpleNamespace(pid=number, is_shared=True)
        self.timeouts: list[float] = []

    def send(self, request: protocol.Request, on_outcome: Any) -> None:
        on_outcome(protocol.RequestFailed(id=request.id, error_type="ComputeError", message="The GPU was lost."))

    def end_after_failure(self, timeout_s: float) -> None:
        self.timeouts.append(timeout_s)

    def stop(self, timeout_s: float, *, shut_down: bool = False) -> None:
        pass


def make_client(process: Process) -> Any:
    client: Any = EngineClient()
    client._process, client._last_load = process, protocol.Load(id=1, plan=PLAN)
    client.model_properties = object()
    return client


def test_only_the_process_that_failed_is_ended() -> None:
    failed, healthy = Process(7), Process(8)
    client = make_client(failed)
    with pytest.raises(ComputeError) as failure:
        list(client.generate(protocol.Generate(id=2, tokens=[1])))
    client._process = healthy  # with which another thread has replaced the failed one
    client.end_failed_process(failure.value.process_number, 9)
    assert (failed.timeouts, healthy.timeouts) == ([], [])
    client._process = failed
    client.end_failed_process(failure.value.process_number, 9)
    assert failed.timeouts == [9]


@pytest.mark.parametrize("work", [EngineClient.tokenize, EngineClient.detokenize])
def test_every_request_after_a_death_asks_the_owner_how_to_load_the_model(work: Any) -> None:
    asked: list[LoadPlan] = []
    client = make_client(Process(7, EngineDiedError("died", -6, is_gpu_failure=True)))

    def replace(plan: LoadPlan) -> None:
        asked.append(plan)
        assert client.died_on_gpu
        assert client.needs_restart
        client._process, client.model_properties = Process(8), object()

    client._replace = replace
    assert client.needs_restart
    with pytest.raises(ComputeError):
        work(client, "text" if work is EngineClient.tokenize else [1])
    assert asked == [PLAN]
    assert not client.needs_restart


def test_engine_that_dies_again_while_its_owner_uses_it_ends_the_restart() -> None:
    client = make_client(Process(7, EngineDiedError("died")))

    def replace(plan: LoadPlan) -> None:
        client._process, client.model_properties = Process(8, EngineDiedError("died again")), object()
        client.tokenize("a text of the chat template")

    client._replace = replace
    with pytest.raises(EngineDiedError, match="ended while the model was loaded again"):
        client.restart_if_dead()
    assert client.needs_restart


def test_other_threads_wait_for_a_restart() -> None:
    """An engine needs a restart until that has ended, so that nobody sends requests to a process without a model."""
    client = make_client(Process(7, EngineDiedError("died")))
    has_begun, may_end, n_restarts = threading.Event(), threading.Event(), 0

    def replace(plan: LoadPlan) -> None:
        nonlocal n_restarts
        n_restarts += 1
        client._last_load = None  # as a load does
        client._process = Process(8)
        has_begun.set()
        may_end.wait(HANG_S)
        client.model_properties = object()

    client._replace = replace
    threads = [threading.Thread(target=client.restart_if_dead) for _ in range(2)]
    threads[0].start()
    assert has_begun.wait(HANG_S)
    assert client.needs_restart
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(HANG_S)
    assert (n_restarts, client.needs_restart) == (1, False)
