"""Bounds and conversations of the store of responses."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.serve.errors import ApiError
from edgechat.serve.response_store import ResponseStore, StoredResponse


def make_response(name: str, previous: StoredResponse | None = None, n_bytes: int = 1000) -> StoredResponse:
    return StoredResponse(name, b" " * (n_bytes // 2), b" " * (n_bytes // 2), previous)


def test_oldest_responses_are_deleted_first() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        store.add(make_response(name))
    assert len(store) == 2
    assert [store.find(name).id for name in "bc"] == ["b", "c"]
    with pytest.raises(ApiError, match="kept in memory only") as missing:
        store.find("a")
    assert missing.value.status == 404
    with pytest.raises(ApiError, match="kept in memory only") as unknown:
        store.find_previous("a")
    assert (unknown.value.status, unknown.value.code) == (400, "previous_response_not_found")


def test_conversation_survives_the_deletion_of_its_first_response() -> None:
    store = ResponseStore()
    first = make_response("a")
    store.add(first)
    store.add(make_response("b", store.find_previous("a")))
    store.delete("a")
    assert store.n_bytes == 2 * first.n_bytes
    assert [response.id for response in store.find("b").iterate_history()] == ["b", "a"]
    store.delete("b")
    assert (len(store), store.n_bytes) == (0, 0)
    with pytest.raises(ApiError):
        store.delete("b")


def test_bytes_are_bounded_and_a_conversation_above_the_bound_is_not_stored() -> None:
    store = ResponseStore(max_bytes=10_000)
    store.add(make_response("a", n_bytes=4000))
    store.add(make_response("huge", n_bytes=11_000))
    assert len(store) == 1
    store.add(make_response("b", store.find("a"), n_bytes=4000))
    store.add(make_response("c", store.find("b"), n_bytes=4000))
    assert [name for name in ("a", "b", "c") if _is_stored(store, name)] == ["a", "b"]
    store.add(make_response("d", n_bytes=4000))
    assert not _is_stored(store, "a")
    assert not _is_stored(store, "b")
    assert _is_stored(store, "d")


def _is_stored(store: ResponseStore, name: str) -> bool:
    try:
        return store.find(name).id == name
    except ApiError:
        return False


def test_deleted_responses_are_freed() -> None:
    store = ResponseStore(max_responses=1)
    response = make_response("a")
    reference = weakref.ref(response)
    store.add(response)
    del response
    store.add(make_response("b"))
    gc.collect()
    assert reference() is None


@given(st.lists(st.tuples(st.integers(0, 2500), st.none() | st.integers(0, 9), st.booleans()), max_size=30))
def test_count_of_bytes_is_that_of_all_reachable_responses(steps: list[tuple[int, int | None, bool]]) -> None:
    store = ResponseStore(max_responses=5, max_bytes=9000)
    created: list[StoredResponse] = []
    for i, (n_bytes, previous, is_deleted) in enumerate(steps):
        # A response may be deleted while a response that continues it is being generated.
        response = make_response(str(i), created[previous] if previous is not None and previous < i else None, n_bytes)
        created.append(response)
        store.add(response)
        if is_deleted and _is_stored(store, str(i)):
            store.delete(str(i))
        findable = [response for response in created if _is_stored(store, response.id)]
        reachable = {r.id: r for response in findable for r in response.iterate_history()}
        assert store.n_bytes == sum(r.n_bytes for r in reachable.values()) <= 9000
        assert len(store) == len(findable) <= 5
    for response in created:
        if _is_stored(store, response.id):
            store.delete(response.id)
    assert store.n_bytes == 0
