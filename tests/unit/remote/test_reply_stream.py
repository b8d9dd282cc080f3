"""Chunks of replies in any wrong form, and streams in any pieces."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import RemoteError
from edgechat.remote import sse
from edgechat.remote.reply_stream import clean_message, decode_chunk, decode_object, find_error_message
from edgechat.remote.sse import read_events, read_lines

_KEYS = (
    "choices", "delta", "message", "content", "reasoning", "reasoning_content", "finish_reason", "usage", "error",
    "text", "type", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens",
)  # fmt: skip
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)  # fmt: skip


def make_reader(parts: list[bytes]) -> Callable[[int], bytes]:
    remaining = [part for part in parts if part]
    return lambda _count: remaining.pop(0) if remaining else b""


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=6))
def test_any_object_is_a_chunk_or_a_clear_error(value: dict[str, Any]) -> None:
    with contextlib.suppress(RemoteError):
        chunk = decode_chunk(value, "box")
        (chunk.text + chunk.reasoning + chunk.finish_reason).encode()
        assert chunk.usage is None or chunk.usage.prompt_tokens >= 0
    find_error_message(value).encode("utf-8", "replace")


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_clear_error(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        json.dumps(decode_object(data, "box"))


@given(st.lists(st.sampled_from([b"data: a", b"\n", b"\r\n", b": ping", b"data:", b"x", b"event: e"]), max_size=12))
def test_events_are_the_same_however_the_stream_is_cut(parts: list[bytes]) -> None:
    def read(pieces: list[bytes]) -> list[bytes]:
        events: Iterator[bytes | None] = read_events(read_lines(make_reader(pieces), "box"))
        return [event for event in events if event is not None]

    data = b"".join(parts)
    assert read([data]) == read(parts) == read([data[i : i + 1] for i in range(len(data))])


def test_lines_of_an_event_are_joined() -> None:
    parts = [b"data: a\ndata:b\n\ndata: [DONE]"]
    assert list(read_events(read_lines(make_reader(parts), "box"))) == [b"a\nb", b"[DONE]"]


def test_event_of_many_lines_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)
    with pytest.raises(RemoteError, match="an event of more than"):
        list(read_events(read_lines(make_reader([b"data: " + b"x" * 50 + b"\n"] * 3), "box")))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "Bad."}}, "Bad"), ({"error": "Bad"}, "Bad"), ({"detail": "Bad"}, "Bad"),
        ({"message": "a\n\x1b[31m  b"}, "a ␛[31m b"), ({"error": {"code": 5}}, ""), ({}, ""),
        ({"detail": [{"loc": ["body", "top_k", 0], "msg": "Extra"}, {"msg": 5}, 7]}, "top_k.0: Extra"),
        ({"choices": [], "message": "not an error"}, ""), ({"error": {"message": None, "code": "full"}}, "full"),
    ],
)  # fmt: skip
def test_message_of_an_error_is_found(value: dict[str, Any], message: str) -> None:
    assert find_error_message(value) == message


def test_long_message_is_shortened() -> None:
    assert len(clean_message("x" * 5000)) < 400
