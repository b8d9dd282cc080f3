"""Places in the queue of a model, by client address, and heartbeats of its event streams."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.config import Settings
from edgechat.engine import frames, protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.errors import ComputeError, EngineDiedError, EngineError
from edgechat.serve.addresses import LOOPBACK
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.errors import ApiError
from edgechat.serve.event_stream import EventStream, OnOutcome
from edgechat.serve.model_lease import ModelLease
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.schemas import ChatRequest
from tests.time_limit import HANG_S
from tests.unit.serve.examples import chat_request
from tests.waiting import until_async


def make_queue(max_requests: int) -> ModelQueue:
    return ModelQueue("model", Path("model.gguf"), Settings(), max_requests, ModelLease())


async def test_one_address_leaves_a_quarter_of_the_queue_to_others() -> None:
    queue = make_queue(8)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(queue.admit("10.0.0.1"))
        with pytest.raises(ApiError, match="6 requests from this address"):
            stack.enter_context(queue.admit("10.0.0.1"))
        stack.enter_context(queue.admit("10.0.0.2"))
        stack.enter_context(queue.admit(LOOPBACK))
        obstacle = queue.find_obstacle("10.0.0.3")
        assert obstacle is not None
        assert (obstacle.status, obstacle.code, obstacle.headers["Retry-After"]) == (503, "queue_full", "2")
    assert queue.n_requests == 0
    assert queue.find_obstacle("10.0.0.1") is None
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(queue.admit(LOOPBACK))
        assert queue.find_obstacle(LOOPBACK) is not None
    queue.is_draining = True
    obstacle = queue.find_obstacle()
    assert obstacle is not None
    assert obstacle.code == "shutting_down"


async def test_queue_of_one_place_is_open_to_every_address() -> None:
    with make_queue(1).admit("10.0.0.1"):
        pass


async def test_heartbeats_are_events_and_end_with_the_stream() -> None:
    stream = EventStream(make_queue(1), [_Request()], heartbeat_s=0.01)  # type: ignore[list-item]
    for _ in range(3):
        event = await stream.next()
        assert event is not None
        assert event.event is None
    assert not stream.has_started
    stream.close()
    assert await stream.next() is None


class _Request:
    id = 1


class _Owner:
    """Owner of a stream whose requests can be sent again as often as `can_recover` says."""

    plan = None

    def __init__(self, *can_recover: bool) -> None:
        self.can_recover = list(can_recover)
        self.resubmitted: list[Any] = []

    async def recover_from(self, error: object, plan: object) -> bool:
        return self.can_recover.pop(0)

    def resubmit(self, request: object, on_outcome: OnOutcome) -> None:
        self.resubmitted.append((request, on_outcome))

    def release(self, stream: EventStream) -> None:
        pass


class _LoadingOwner(_Owner):
    """Owner that loads the model until `has_loaded` is set, before a request can be sent again."""

    def __init__(self) -> None:
        super().__init__()
        self.has_loaded = asyncio.Event()

    async def recover_from(self, error: object, plan: object) -> bool:
        return await self.has_loaded.wait()


FAILURE = ComputeError("The GPU failed.")
GPU_PLAN, CPU_PLAN = (SimpleNamespace(options=SimpleNamespace(uses_gpu=uses_gpu)) for uses_gpu in (True, False))


def make_stream(owner: _Owner, n_requests: int) -> tuple[EventStream, list[OnOutcome]]:
    requests = [protocol.Generate(id=5 + i, tokens=[1], max_tokens=4) for i in range(n_requests)]
    stream = EventStream(owner, requests)
    return stream, [stream.make_event_handler(i) for i in range(n_requests)]


async def test_stream_goes_on_after_a_failure_of_the_gpu() -> None:
    owner = _Owner(True, True)
    stream, handlers = make_stream(owner, 2)
    handlers[0](protocol.TokensGenerated(id=5, text="a", tokens=[7], thinking_s=2.5))
    stream.end_thinking()
    for handler in handlers:
        handler(FAILURE)
    events = [await stream.next() for _ in range(3)]
    assert [event and event.event and event.event.id for event in events] == [5, None, None]
    (resumed, on_outcome), (restarted, _) = owner.resubmitted
    assert (resumed.id, resumed.resumed[0].tokens) == (5, [7])
    assert (resumed.is_thinking_ended, resumed.resumed[0].thinking_s) == (True, 2.5)
    assert (restarted.id, restarted.resumed) == (6, [])
    on_outcome(protocol.PrefillProgressed(id=5, done_tokens=1, total_tokens=1))
    on_outcome(protocol.TokensGenerated(id=5, text="b", tokens=[8]))
    progress, text = await stream.next(), await stream.next()
    assert progress is not None
    assert progress.event is None  # the client has seen the progress of this prompt
    assert text is not None
    assert isinstance(text.event, protocol.TokensGenerated)
    assert stream.unfinished_ids == [5, 6]


async def test_second_failure_and_other_errors_end_a_stream() -> None:
    owner = _Owner(True, True)
    stream, [handler] = make_stream(owner, 1)
    handler(FAILURE)
    await stream.next()
    owner.resubmitted[0][1](FAILURE)
    with pytest.raises(ComputeError):
        await stream.next()
    assert len(owner.resubmitted) == 1
    assert await stream.next() is None
    stream, [handler] = make_stream(_Owner(False), 1)
    handler(FAILURE)
    with pytest.raises(ComputeError):
        await stream.next()
    assert stream.unfinished_ids == []


async def test_stream_has_heartbeats_while_the_model_is_loaded_again() -> None:
    owner = _LoadingOwner()
    stream = EventStream(owner, [protocol.Generate(id=5, tokens=[1])], heartbeat_s=0.01)
    handler = stream.make_event_handler(0)
    handler(FAILURE)
    for _ in range(3):
        event = await asyncio.wait_for(stream.next(), HANG_S)
        assert event is not None
        assert event.event is None
    assert not owner.resubmitted
    owner.has_loaded.set()
    while not owner.resubmitted:
        await stream.next()
    owner.resubmitted[0][1](protocol.TokensGenerated(id=5, text="b", tokens=[8]))
    while (event := await stream.next()) is None or event.event is None:
        pass
    assert isinstance(event.event, protocol.TokensGenerated)
    stream.close()


async def test_stream_that_is_closed_during_a_load_submits_nothing() -> None:
    owner = _LoadingOwner()
    stream = EventStream(owner, [protocol.Generate(id=5, tokens=[1])], heartbeat_s=0.01)
    stream.make_event_handler(0)(FAILURE)
    await stream.next()
    await stream.next()
    stream.close()
    owner.has_loaded.set()
    for _ in range(9):
        await asyncio.sleep(0)
    assert not owner.resubmitted


async def test_only_failures_of_a_gpu_are_recovered_from_and_others_of_the_same_engine_share_the_cpu() -> None:
    queue: Any = make_queue(1)
    gpu, cpu, failures = GPU_PLAN, CPU_PLAN, []

    def fall_back(error: Exception) -> bool:
        failures.append(error)
        queue._model.plan = cpu
        return True

    queue._model = SimpleNamespace(plan=gpu, fall_back_to_cpu=fall_back, needs_restart=False)
    assert not await queue.recover_from(EngineError("wrong request"), gpu)
    assert not await queue.recover_from(FAILURE, cpu)
    assert not await queue.recover_from(FAILURE, None)
    assert await queue.recover_from(FAILURE, gpu)
    assert await queue.recover_from(EngineDiedError("killed", -9), gpu)
    assert failures == [FAILURE]


class _SlowModel:
    """Model whose loads wait for `may_end`."""

    def __init__(self, plan: object) -> None:
        self.plan, self.needs_restart = plan, False
        self.n_loads = self.n_loads_at_once = self.max_loads_at_once = 0
        self.may_end = threading.Event()

    def restart_if_dead(self) -> None:
        self.n_loads += 1
        self.n_loads_at_once += 1
        self.max_loads_at_once = max(self.max_loads_at_once, self.n_loads_at_once)
        self.needs_restart = True
        self.may_end.wait(HANG_S)
        self.plan, self.needs_restart = CPU_PLAN, False
        self.n_loads_at_once -= 1

    def take_cpu_notice(self) -> str:
        return ""

    def fall_back_to_cpu(self, error: Exception) -> bool:
        self.restart_if_dead()
        return True


@pytest.mark.parametrize("fails_in_reply", [True, False])
async def test_cancelled_request_leaves_its_load_to_the_others(fails_in_reply: bool) -> None:
    queue: Any = make_queue(1)
    model = queue._model = _SlowModel(GPU_PLAN)
    model.needs_restart = not fails_in_reply

    async def load() -> bool:
        if fails_in_reply:
            return bool(await queue.recover_from(FAILURE, GPU_PLAN))
        await queue._ensure_engine()
        return True

    first = asyncio.create_task(load())
    await until_async(lambda: model.n_loads)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    others = [asyncio.create_task(load()), asyncio.create_task(queue._ensure_engine())]
    for _ in range(9):  # enough for a second load to begin
        await asyncio.sleep(0)
    assert not any(task.done() for task in others)
    model.may_end.set()
    assert (await asyncio.gather(*others))[0]
    assert (model.n_loads, model.max_loads_at_once) == (1, 1)


async def test_cancelled_task_cancels_its_prompt() -> None:
    queue, started, was_cancelled = make_queue(1), threading.Event(), threading.Event()

    def build(cancellation: Cancellation) -> None:
        with cancellation.call_on_cancel(was_cancelled.set):
            started.set()
            was_cancelled.wait(HANG_S)

    task = asyncio.ensure_future(queue._run(build))
    assert await asyncio.to_thread(started.wait, HANG_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert was_cancelled.is_set()


async def test_prompt_is_built_again_after_the_engine_died_with_another_request() -> None:
    queue: Any = make_queue(1)
    model = queue._model = _SlowModel(CPU_PLAN)
    model.may_end.set()
    calls: list[bool] = []
    died = EngineDiedError("The engine died with another request.")

    def build(_cancellation: Cancellation) -> str:
        calls.append(model.needs_restart)
        if len(calls) == 1:
            model.needs_restart = True
            raise died
        return "built"

    assert await queue._run(build) == "built"
    assert (calls, model.n_loads) == ([False, False], 1)

    def fail(_cancellation: Cancellation) -> None:
        calls.append(True)
        raise died

    with pytest.raises(EngineDiedError):
        await queue._run(fail)
    assert len(calls) == 4


@pytest.mark.parametrize("name", ChatRequest.__struct_fields__)
async def test_numbers_of_any_size_are_used_or_refused(name: str) -> None:
    queue: Any = make_queue(1)
    properties = SimpleNamespace(n_vocab=100, n_ctx=100)
    queue._model = SimpleNamespace(model_properties=properties, engine=SimpleNamespace(next_id=lambda: 1), plan=None)
    statuses = set()
    for value in (10**400, -(10**400), 10**30, 1 << 63, -(1 << 63) - 1, 1e308, -1e308, 5e-324, -1, 0):
        for field in (value, {"1": value}, {str(value): 1}, [value]):
            try:
                body = chat_request(**({"stream": True} | {name: field}))
                builder = ChatResponseBuilder(queue, body)
                request = queue.build_generate_request([1], body, max_tokens=builder._find_max_tokens())
            except ApiError as error:
                statuses.add(error.status)
                continue
            assert frames.encode(request)
            assert builder.ping_s is None or 0 < builder.ping_s <= 86400
    assert statuses <= {400}


@pytest.mark.parametrize(
    ("n_labels", "message"),
    [
        (0, "model is an embedding model and generates no text. Use /v1/embeddings."),
        (1, "model is a reranker and generates no text. /v1/rerank sorts documents with it."),
    ],
)
def test_model_that_generates_no_text_is_reported(n_labels: int, message: str) -> None:
    queue = make_queue(1)
    properties: Any = SimpleNamespace(is_embedding=True, n_labels=n_labels)
    queue._model.model_properties = properties
    with pytest.raises(ApiError) as caught:
        queue.check_generates_text("/v1/embeddings")
    assert (str(caught.value), caught.value.param) == (message, "model")
