"""Reading of request bodies: size, duration, and memory of all bodies together."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.datastructures import Headers

from edgechat.hardware.memory import return_freed_memory
from edgechat.serve import bodies
from edgechat.serve.bodies import MAX_BODY_BYTES, UNCOUNTED_BYTES, BodyBudget
from edgechat.serve.errors import ApiError
from tests.waiting import until_async

MIB = 1 << 20


class Client:
    """Client whose body arrives in the chunks that a test sends."""

    def __init__(self, budget: BodyBudget) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.can_end = asyncio.Event()
        self.n_bytes = 0
        self.task = asyncio.ensure_future(self._read(budget))

    async def _read(self, budget: BodyBudget) -> str:
        try:
            async with budget.read(self.messages.get, Headers({})) as data:
                self.n_bytes = len(data)
                await self.can_end.wait()
        except ApiError as error:
            return str(error.code)
        return "ok"

    def send(self, n_bytes: int, *, is_last: bool = False) -> None:
        self.messages.put_nowait({"type": "http.request", "body": b" " * n_bytes, "more_body": not is_last})


@pytest.fixture
def small_budget() -> BodyBudget:
    return BodyBudget(4 * MIB)


async def settle(budget: BodyBudget, n_free: int) -> None:
    await until_async(lambda: budget.n_free == n_free, description=lambda: f"{budget.n_free} bytes are free")


async def test_memory_is_counted_until_the_body_is_used(small_budget: BodyBudget) -> None:
    client = Client(small_budget)
    client.send(MIB)
    await settle(small_budget, 3 * MIB + UNCOUNTED_BYTES)
    client.send(MIB, is_last=True)
    await settle(small_budget, 2 * MIB + UNCOUNTED_BYTES)
    assert client.n_bytes == 2 * MIB
    client.can_end.set()
    assert await client.task == "ok"
    assert small_budget.n_free == 4 * MIB


async def test_memory_beside_bodies_is_counted(small_budget: BodyBudget) -> None:
    n_free = small_budget.n_free
    with small_budget.hold(n_free + bodies.UNCOUNTED_BYTES):
        assert small_budget.n_free == bodies.UNCOUNTED_BYTES
        with pytest.raises(ApiError, match="exceed") as refused, small_budget.hold(n_free):
            pass
        assert refused.value.status == 503
        assert small_budget.n_free == bodies.UNCOUNTED_BYTES
    assert small_budget.n_free == n_free


async def test_newest_larger_body_is_refused_when_memory_runs_out(small_budget: BodyBudget) -> None:
    clients = [Client(small_budget) for _ in range(4)]
    for client in clients:
        client.send(MIB + UNCOUNTED_BYTES)
    await settle(small_budget, 0)
    small = Client(small_budget)
    small.send(UNCOUNTED_BYTES + 1, is_last=True)  # takes memory of the newest of the larger bodies
    assert await clients[3].task == "too_many_bodies"
    clients[0].send(MIB // 2, is_last=True)
    await until_async(lambda: small.n_bytes and clients[0].n_bytes)
    large = Client(small_budget)
    large.send(3 * MIB)  # no incoming body is larger
    assert await large.task == "too_many_bodies"
    for client in (*clients[:3], small):
        client.send(0, is_last=True)
        client.can_end.set()
        assert await client.task == "ok"
    assert small_budget.n_free == 4 * MIB


async def test_equal_bodies_do_not_refuse_each_other_all_at_once(small_budget: BodyBudget) -> None:
    clients = [Client(small_budget) for _ in range(40)]
    for i in range(16):
        for client in clients:
            client.can_end.set()
            client.send(MIB // 16, is_last=i == 15)
        await until_async(lambda: all(client.task.done() or client.messages.empty() for client in clients))
    results = await asyncio.gather(*(client.task for client in clients))
    assert results.count("ok") >= 4
    assert set(results) == {"ok", "too_many_bodies"}
    assert small_budget.n_free == 4 * MIB


async def test_stalled_body_is_refused_first(small_budget: BodyBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_STALL_S", 0.0)
    stalled, other = Client(small_budget), Client(small_budget)
    stalled.send(MIB // 2 + UNCOUNTED_BYTES)
    await settle(small_budget, 7 * MIB // 2)
    other.send(3 * MIB + UNCOUNTED_BYTES)
    await settle(small_budget, MIB // 2)
    stalled.send(1)  # a few bytes are no progress
    await settle(small_budget, MIB // 2 - 1)
    other.send(MIB // 2)
    assert await stalled.task == "too_many_bodies"
    other.send(0, is_last=True)
    other.can_end.set()
    assert await other.task == "ok"


async def test_small_bodies_are_never_refused() -> None:
    budget = BodyBudget(0)
    clients = [Client(budget) for _ in range(50)]
    for client in clients:
        client.send(UNCOUNTED_BYTES, is_last=True)
        client.can_end.set()
    assert await asyncio.gather(*(client.task for client in clients)) == ["ok"] * 50


async def test_memory_of_complete_bodies_is_never_taken(small_budget: BodyBudget) -> None:
    complete = Client(small_budget)
    complete.send(4 * MIB, is_last=True)
    await settle(small_budget, UNCOUNTED_BYTES)
    late = Client(small_budget)
    late.send(MIB)
    assert await late.task == "too_many_bodies"
    complete.can_end.set()
    assert await complete.task == "ok"


async def test_memory_of_decoded_bodies_stays_within_the_budget() -> None:
    data = b"[" + b",".join([b"[]"] * 250_000) + b"]"  # 0.7 MiB, and 19 MiB when it is decoded
    budget, can_end = BodyBudget(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    async def decode() -> str:
        try:
            async with budget.read(receive, Headers({})) as body:
                value = msgspec.json.decode(body)
                await can_end.wait()
                return f"{len(value)} values"
        except ApiError as error:
            return str(error.code)

    tracemalloc.start()
    try:
        tasks = [asyncio.ensure_future(decode()) for _ in range(8)]
        await until_async(lambda: sum(task.done() for task in tasks) >= 7)
        _, n_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    can_end.set()
    results = await asyncio.gather(*tasks)
    assert results == ["250000 values", *["too_many_bodies"] * 7]
    assert n_bytes < bodies.BUDGET_BYTES
    assert budget.n_free == bodies.BUDGET_BYTES


async def test_slow_broken_and_large_bodies_are_refused(
    small_budget: BodyBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(small_budget)
    client.messages.put_nowait({"type": "http.disconnect"})
    assert await client.task == "None"
    budget = BodyBudget()
    client = Client(budget)
    for _ in range(17):
        client.send(MIB)
    assert await client.task == "too_large"
    with pytest.raises(ApiError, match="larger than 16 MiB"):
        async with budget.read(client.messages.get, Headers({"content-length": str(MAX_BODY_BYTES + 1)})):
            pass
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)
    assert await Client(budget).task == "timeout"
    assert budget.n_free == bodies.BUDGET_BYTES


async def test_rest_of_a_body_is_discarded_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: asyncio.Queue[Any] = asyncio.Queue()
    with monkeypatch.context() as context:
        context.setattr(bodies, "_DISCARD_TIMEOUT_S", 0.05)
        await bodies.discard_body(messages.get)  # the client sends nothing
    monkeypatch.setattr(bodies, "_DISCARD_TIMEOUT_S", 600.0)
    for _ in range(100):
        messages.put_nowait({"type": "http.request", "body": b" " * MIB, "more_body": True})
    await bodies.discard_body(messages.get)
    assert messages.qsize() == 100 - 64
    messages.put_nowait({"type": "http.disconnect"})
    assert not bodies.has_body(Headers({}))
    assert not bodies.has_body(Headers({"content-length": "0"}))
    assert bodies.has_body(Headers({"content-length": "9" * 30}))
    assert bodies.has_body(Headers({"transfer-encoding": "chunked"}))


async def test_memory_of_large_bodies_returns_to_the_system_once_for_all(
    small_budget: BodyBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns: list[int] = []
    scheduled: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def schedule(delay_s: float, callback: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if callback != small_budget._return_freed_memory:
            return call_later(delay_s, callback, *arguments, **options)
        assert delay_s == bodies._MEMORY_RETURN_DELAY_S
        return scheduled.append(callback)

    monkeypatch.setattr(loop, "call_later", schedule)
    monkeypatch.setattr(bodies, "return_freed_memory", lambda: returns.append(1))
    for n_bytes in (MIB, MIB, 1000):
        client = Client(small_budget)
        client.send(n_bytes + UNCOUNTED_BYTES, is_last=True)
        client.can_end.set()
        assert await client.task == "ok"
    assert len(scheduled) == 1
    scheduled[0]()
    await until_async(lambda: returns)
    client = Client(small_budget)
    client.send(1000, is_last=True)
    client.can_end.set()
    assert await client.task == "ok"
    assert (len(scheduled), returns) == (1, [1])


def test_freed_memory_can_be_returned_on_every_system() -> None:
    return_freed_memory()
