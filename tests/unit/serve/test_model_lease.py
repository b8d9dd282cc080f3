"""Served models take turns."""

from __future__ import annotations

import asyncio

from edgechat.serve.model_lease import ModelLease


async def test_one_model_computes_at_a_time_and_none_starves() -> None:
    lease, events = ModelLease(), []

    async def compute(model: str, name: str, n_steps: int) -> None:
        await lease.acquire(model)
        events.append(name)
        for _ in range(n_steps):
            await asyncio.sleep(0)
        events.append(f"{name} ends")
        lease.release()

    tasks = [
        asyncio.ensure_future(compute(*arguments))
        for arguments in (("a", "a1", 9), ("a", "a2", 5), ("b", "b1", 2), ("a", "a3", 1), ("b", "b2", 1))
    ]
    await asyncio.sleep(0)
    cancelled = asyncio.ensure_future(compute("b", "cancelled", 1))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(*tasks)
    assert events == ["a1", "a2", "a2 ends", "a1 ends", "b1", "b1 ends", "a3", "a3 ends", "b2", "b2 ends"]
    assert (lease._model, lease._n_requests, len(lease._waiters)) == ("", 0, 0)
