"""Estimates of the memory that a body takes when it is decoded."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from edgechat.serve import decoded_size, errors
from edgechat.serve.decoded_size import MAX_VALUES, count_values, estimate_decoded_bytes
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest, CompletionRequest

MIB = 1 << 20
CHAT = '{"messages": [%s]}'
SCHEMA = '{"messages": [{"role": "user", "content": ""}], "json_schema": {"x": [%s]}}'
CONTENT = '{"messages": [{"role": "user", "content": [%s]}]}'
CALLS = '{"messages": [{"role": "assistant", "tool_calls": [%s]}]}'
BODIES: list[tuple[Any, str, str]] = [
    (ChatRequest, SCHEMA, "{}"), (ChatRequest, SCHEMA, "[]"), (ChatRequest, SCHEMA, "0.5"),
    (ChatRequest, SCHEMA, "[[]]"),
    (ChatRequest, SCHEMA, '{"a":0}'), (ChatRequest, SCHEMA, '{"a":{}}'), (ChatRequest, SCHEMA, '{"a":"b","c":0.5}'),
    (ChatRequest, SCHEMA, '"\\u0101"'), (ChatRequest, SCHEMA, "1" * 30),
    (ChatRequest, SCHEMA, json.dumps({f"k{i}": 0.5 for i in range(6)})),
    (ChatRequest, CONTENT, '"ab"'), (ChatRequest, CONTENT, '{"type":"text","text":"a"}'),
    (ChatRequest, CONTENT, json.dumps("a" * 4000)), (ChatRequest, CONTENT, json.dumps("é" * 4000, ensure_ascii=False)),
    (ChatRequest, CONTENT, json.dumps("a" * 4000 + "ć", ensure_ascii=False)),
    (ChatRequest, CONTENT, json.dumps("a" * 4000 + "😀", ensure_ascii=False)),
    (ChatRequest, CONTENT, json.dumps("a" * 4000 + "😀")),
    (ChatRequest, CHAT, '{"role":"user","content":""}'), (ChatRequest, CHAT, '{"role":"assistant"}'),
    (ChatRequest, CALLS, '{"function":{"name":"a"}}'), (ChatRequest, CALLS, '{"function":{"name":"a","arguments":{}}}'),
    (CompletionRequest, '{"prompt": [%s]}', "[]"), (CompletionRequest, '{"prompt": [%s]}', "999"),
    (CompletionRequest, '{"prompt": [%s]}', '"ab"'), (CompletionRequest, '{"prompt": [%s]}', "[999,9999]"),
    (CompletionRequest, '{"prompt": "", "guided_choice": [%s]}', '"ab"'),
]  # fmt: skip


@pytest.mark.parametrize(("body_type", "frame", "item"), BODIES)
def test_decoded_body_takes_no_more_memory_than_estimated(body_type: Any, frame: str, item: str) -> None:
    n_items = min(20_000, MIB // len(item))
    data = bytearray((frame % ",".join([item] * n_items)).encode())
    estimate = estimate_decoded_bytes(data) + 4096 * 96  # the first values are not counted
    errors.decode_body(data, body_type)  # objects that are created once
    tracemalloc.start()
    try:
        body = errors.decode_body(data, body_type)
        n_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body is not None
    assert n_bytes <= estimate
    assert estimate <= 20 * n_bytes + 4096 * 96


def test_values_are_counted_outside_strings() -> None:
    text = json.dumps({"a,[{": ['{"b": [1, 2]}' * 1000, "\\", '\\"', '"[', "\\\\,", [{}, 1, None]]}, ensure_ascii=False)
    many = f"[{','.join([text] * 1000)}]"
    assert count_values(many.encode()) == 1000 * 12 + 1000
    source = json.dumps({"messages": [{"role": "user", "content": "f(a, {b: [c]})\n" * 100_000}]})
    assert count_values(source.encode()) == 7
    assert count_values(b'["' + b'\\"[,' * 100_000) == 1  # a string without end


def test_body_with_too_many_values_is_not_counted_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    count_bytes, n_counts = decoded_size._count_structural_bytes, 0

    def count(block: bytes) -> int:
        nonlocal n_counts
        n_counts += 1
        return count_bytes(block)

    monkeypatch.setattr(decoded_size, "_count_structural_bytes", count)
    for item in ("{}", "0", '"\\""', '{"a":1}'):
        data = bytearray(b"[" + ",".join([item] * (15 * MIB // (len(item) + 1))).encode() + b"]")
        n_counts = 0
        with pytest.raises(ApiError, match=f"more than {MAX_VALUES} JSON values"):
            estimate_decoded_bytes(data)
        assert n_counts < 8  # of the whole body, and of the first of its 15 blocks
