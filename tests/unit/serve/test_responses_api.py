"""Memory of stored conversations that a request of the Responses API continues or lists."""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast

import pytest

from edgechat.serve.bodies import UNCOUNTED_BYTES, BodyBudget
from edgechat.serve.dialects.openai_responses_schemas import ResponsesRequest
from edgechat.serve.metrics import Metrics
from edgechat.serve.response_store import StoredResponse
from edgechat.serve.responses_api import ResponsesApi

N_RESPONSES = 100
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x" * 10_000}]}
INPUT_ITEMS = json.dumps([ITEM]).encode()
BUDGET_BYTES = 64 << 20


def make_output(n: int) -> bytes:
    return json.dumps({"output": [ITEM | {"id": f"msg_{n}x0", "role": "assistant"}]}).encode()


@pytest.fixture
def api() -> ResponsesApi:
    """Return endpoints with a conversation of small stored responses."""
    api = ResponsesApi(cast("Any", None), cast("Metrics", None), cast("Any", None), BodyBudget(BUDGET_BYTES))
    previous: StoredResponse | None = None
    for n in range(N_RESPONSES):
        previous = StoredResponse(f"resp_{n}", make_output(n), INPUT_ITEMS, previous)
        api._store.add(previous)
    return api


async def test_small_responses_of_a_conversation_count_together(api: ResponsesApi) -> None:
    last = api._store.find(f"resp_{N_RESPONSES - 1}")
    n_bytes = sum(len(r.input_items) + len(r.response) for r in last.iterate_history())
    async with contextlib.AsyncExitStack() as memory:
        body = ResponsesRequest(input="Hi", previous_response_id=last.id)
        _, _, history = api._read_conversation(body, memory)
        assert len(history) == 2 * N_RESPONSES
        assert api._body_budget.n_free <= BUDGET_BYTES - 4 * n_bytes + UNCOUNTED_BYTES
    assert api._body_budget.n_free == BUDGET_BYTES
    async with contextlib.AsyncExitStack() as memory:
        assert len(api._list_items(last, memory)) == 2 * N_RESPONSES - 1
        assert api._body_budget.n_free <= BUDGET_BYTES - 4 * n_bytes + UNCOUNTED_BYTES


async def test_responses_of_referenced_items_count_together(api: ResponsesApi) -> None:
    references = [{"type": "item_reference", "id": f"msg_{n}x0"} for n in range(N_RESPONSES)]
    async with contextlib.AsyncExitStack() as memory:
        _, items, _ = api._read_conversation(ResponsesRequest(input=references), memory)
        assert len(items) == N_RESPONSES
        n_bytes = sum(len(make_output(n)) for n in range(N_RESPONSES))
        assert api._body_budget.n_free <= BUDGET_BYTES - 4 * n_bytes + UNCOUNTED_BYTES
