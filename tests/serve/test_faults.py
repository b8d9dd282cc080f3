"""Invalid and interrupted requests, and failures of the engine: each gets a clear error, and the server continues."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from edgechat.serve.errors import RETRY_AFTER_S
from tests.serve.client import (
    CANCEL_TIMEOUT_S,
    DRAIN_TIMEOUT_S,
    FLUSH_TIMEOUT_S,
    NEVER,
    STOPPED_TICKS,
    ServerProcess,
    user,
)
from tests.serve.conftest import Start
from tests.waiting import until

# The reply ends neither early nor because it repeats itself: on two cores, the engine generates it for 15 s.
LONG = {"messages": user("Tell a long story."), "max_tokens": 1500, "temperature": 0, "ignore_eos": True}


def gauge(server: ServerProcess, name: str) -> float:
    text = server.request("/metrics")[1]
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"edgechat_requests_{name}{{"))


def is_idle(server: ServerProcess) -> bool:
    return gauge(server, "running") == gauge(server, "waiting") == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "valid JSON"), (b"{", "valid JSON"), (b"\xff\xfe", "valid JSON"), (b"[]", "object"), (b"null", "object"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "valid JSON"), (b'{"a": ' * 100_000, "valid JSON"),
        ({}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "role"), ({"messages": [{"role": "king", "content": "x"}]}, "king"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "only text"),
        ({"messages": user("x"), "max_tokens": 0}, "max_tokens"), ({"messages": user("x"), "n": 0}, "n"),
        ({"messages": user("x"), "n": 1000}, "n: must be at most"),
        ({"messages": user("x"), "temperature": 9}, "temperature"), ({"messages": user("x"), "top_p": -1}, "top_p"),
        ({"messages": user("x"), "stop": ["x"] * 17}, "stop"),
        ({"messages": user("x"), "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": user("x"), "top_logprobs": 21}, "top_logprobs"),
        ({"messages": user("x " * 4000)}, "the context holds 2,048"),
        ({"messages": user("x " * 400_000)}, "more than 8,192 tokens"),
        ({"messages": [*user("x"), *user("y")] * 20_000}, "has 40,000 messages"),
        ({"messages": user("x " * 1_500_000)}, "3,000"),
        ({"messages": user("x"), "tool_choice": "required"}, "at least one tool"),
        ({"messages": user("x"), "stream": "yes"}, "stream"),
        ({"messages": user("x"), "tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"messages": user("x"), "response_format": {"type": "xml"}}, "xml"),
        ({"messages": user("x"), "response_format": {"type": "json_schema"}}, "json_schema"),
    ],
)  # fmt: skip
def test_invalid_request_is_reported(server: ServerProcess, body: Any, message: str) -> None:
    status, answer, _ = server.request("/v1/chat/completions", body)
    assert status == 400, answer
    error = answer["error"]
    assert message in error["message"], error
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"), ({"not": {"type": "string"}}, "not"), (False, "not"),
        ({"type": "object", "properties": {"a": {"contains": {}}}}, "contains"), ({"if": {}, "then": {}}, "if"),
        ({"type": "string", "format": "shoe-size"}, "shoe-size"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "(unclosed"}, "regex"),
        ({"$ref": "https://example.org/x"}, "https://example.org/x"),
        ({"$ref": "#/$defs/none"}, "none"), ({"type": "king"}, "king"), ({"enum": []}, "Unsatisfiable"),
        ({"type": "object", "minProperties": 3}, "minProperties"), ({"type": "integer", "minimum": 1e30}, "minimum"),
        ({"$ref": "#"}, "no text matches the grammar"), ({"x-guidance": {}}, "x-guidance"),
        ({"anyOf": [{"type": "object", "minProperties": 3}]},
        "response_format.json_schema.schema.anyOf[0]: minProperties"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, ""), ({"oneOf": [{}, {"type": "string"}]}, "oneOf"),
    ],
)  # fmt: skip
def test_unsupported_schema_keyword_is_named(tiny_server: ServerProcess, schema: Any, message: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, answer = tiny_server.chat({"messages": "Hi", "response_format": form, "max_tokens": 5})
    assert status == 400, answer
    assert message in answer["error"]["message"]
    if isinstance(schema, dict):  # a tool with this schema refuses nothing, unless it is strict
        parameters = {"type": "object", "properties": {"a": schema}}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        status, answer = tiny_server.chat({"messages": "Hi", "tools": [tool], "max_tokens": 5})
        assert status == 200, answer


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


EXPENSIVE_SCHEMAS: list[dict[str, Any]] = [
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, {"type": "string", "pattern": "((((a*)*)*)*)*b"},
    {"type": "string", "pattern": "(.{0,500}x){200}"}, {"type": "string", "minLength": 10**9},
    {"type": "string", "pattern": "(" * 5000 + ")" * 5000}, {"type": "array", "minItems": 10**9},
    {"type": "string", "pattern": "|".join(f"{'a' * i}.*b{i}" for i in range(300))},
    {"type": "object", "properties": {f"p{i}": {"type": "string",
    "pattern": f"^.{{0,{i}}}x.{{{i}}}$"} for i in range(300)}},
    {"enum": ["v" * i for i in range(500)]}, deep(60), deep(500), {"$ref": "#"}, {"anyOf": [{"$ref": "#"},
    {"$ref": "#"}]},
    {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)} | {"d25": {}},
    "$ref": "#/$defs/d0"},
    {"type": "integer", "multipleOf": 1e-300}, {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
    {"type": "integer", "multipleOf": 99999989}, {"type": "integer", "multipleOf": 1000003},
    {"type": "integer", "allOf": [{"multipleOf": n} for n in (9973, 9967, 9949, 9941)]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
    {"$ref": "#/$defs/d0",
     "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)} | {"d5000": {"type": "string"}}},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(EXPENSIVE_SCHEMAS)))
def test_expensive_schema_neither_blocks_nor_kills_the_engine(server: ServerProcess, number: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": EXPENSIVE_SCHEMAS[number]}}
    pid = server.engine_pid
    status, answer = server.chat(
        {"messages": "Hi", "response_format": form, "max_tokens": 12, "temperature": 1, "seed": 1}
    )
    assert status in {200, 400}, answer
    assert server.engine_pid == pid
    assert server.chat({"messages": "Hi", "max_tokens": 1})[0] == 200


def test_disconnect_cancels_the_request(server: ServerProcess) -> None:
    stream = server.stream(LONG)
    next(stream)
    until(lambda: gauge(server, "running") == 1)
    stream.close()  # type: ignore[attr-defined]
    until(lambda: is_idle(server))
    body = json.dumps(LONG).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with server.connect() as connection:  # without a stream: no write fails that would reveal the disconnect
        connection.sendall(head.encode() + body)
        until(lambda: gauge(server, "running") == 1)
    until(lambda: is_idle(server))
    with server.connect() as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)  # the client can still read, until it closes the connection
        until(lambda: gauge(server, "running") == 1)
    until(lambda: is_idle(server))
    with server.connect() as connection:
        connection.sendall(head.encode() + body[: len(body) // 2])
    assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200


def test_killed_engine_ends_a_stream_with_an_error_and_is_restarted(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "2048")
    events = []
    for event in server.stream(LONG):
        events.append(event)
        if len(events) == 3:
            os.kill(server.engine_pid, signal.SIGKILL)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "engine_died"
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.chat({"messages": "Hi", "max_tokens": 2})[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    # Without a stream, the error is the HTTP status.
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(server.chat(dict(LONG))))
    thread.start()
    until(lambda: gauge(server, "running") == 1)
    os.kill(server.engine_pid, signal.SIGKILL)
    thread.join()
    assert (answers[0][0], answers[0][1]["error"]["code"]) == (500, "engine_died")
    assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200


def test_full_queue_responds_with_retry_after(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "2048", "--max-requests", "2")
    streams = [server.stream(LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    status, answer, response = server.request("/v1/chat/completions", {"messages": user("Hi")})
    assert status == 503
    assert answer["error"]["code"] == "queue_full"
    assert response.headers["Retry-After"] == str(RETRY_AFTER_S)
    assert server.request("/v1/models")[0] == 200
    streams[0].close()  # type: ignore[attr-defined]
    until(lambda: gauge(server, "running") + gauge(server, "waiting") == 1)
    assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200
    streams[1].close()  # type: ignore[attr-defined]


def test_idle_connections_and_a_slow_reader_do_not_delay_others(server: ServerProcess) -> None:
    body = json.dumps(LONG | {"stream": True, "max_tokens": 300}).encode()
    slow = server.connect()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    slow.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    with contextlib.ExitStack() as stack:
        stack.callback(slow.close)
        for _ in range(500):
            stack.enter_context(server.connect())
        assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200
    until(lambda: is_idle(server))


def test_first_ctrl_c_drains_requests(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "2048", constants={DRAIN_TIMEOUT_S: NEVER, STOPPED_TICKS: NEVER})
    stream = server.stream(LONG | {"max_tokens": 100, "stream_options": {"include_usage": True}})
    next(stream)
    engine_pid = server.engine_pid
    os.kill(engine_pid, signal.SIGSTOP)  # the reply does not end before the server has received the signal
    server.interrupt()
    until(lambda: server.has_printed("to finish"))
    os.kill(engine_pid, signal.SIGCONT)
    events = list(stream)
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == 100
    assert server.process.wait(120) == 0


def test_second_ctrl_c_cancels_requests(start: Start) -> None:
    constants = dict.fromkeys((DRAIN_TIMEOUT_S, CANCEL_TIMEOUT_S, FLUSH_TIMEOUT_S), NEVER)
    server = start("-m", "starter", "--ctx", "2048", constants=constants)
    stream = server.stream(LONG | {"stream_options": {"include_usage": True}})
    next(stream)
    server.interrupt()
    until(lambda: server.has_printed("to finish"))
    server.interrupt()
    events = list(stream)
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] < 1500
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(120) == 0


def test_strict_mode_repeats_the_text_of_a_seed(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "1024", EDGECHAT_STRICT="true")
    body = {"messages": "Tell me about rivers.", "max_tokens": 24, "temperature": 1.2, "seed": 7}
    texts: list[str] = []

    def generate(**options: Any) -> None:
        texts.append(server.chat(body | options)[1]["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=generate) for _ in range(3)] + [
        threading.Thread(target=generate, kwargs={"seed": 8})
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    generate()
    assert len(texts) == 5
    assert len(set(texts)) == 2


def find_saved_length(home: Path) -> int:
    """Return how many tokens of the longest conversation the prefix cache has saved on disk."""
    return max((int(path.name.split("-")[1]) for path in home.rglob("*.kv")), default=0)


def test_prefix_cache_serves_other_clients_edits_and_restarts(start: Start, home: Path) -> None:
    server = start("-m", "starter", "--ctx", "2048")
    system = {"role": "system", "content": "You are a helpful and very careful assistant. " * 20}
    turn = [system, *user("What is the capital of France?")]
    _, first = server.chat({"messages": turn, "max_tokens": 8, "temperature": 0})
    reply = first["choices"][0]["message"]["content"]
    following = [*turn, {"role": "assistant", "content": reply}, *user("And of Spain?")]
    _, second = server.chat({"messages": following, "max_tokens": 8, "temperature": 0})
    n_first = first["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= n_first
    until(lambda: find_saved_length(home) >= n_first)
    _, edited = server.chat({"messages": [system, *user("Who was Napoleon?")], "max_tokens": 8, "temperature": 0})
    assert edited["usage"]["prompt_tokens_details"]["cached_tokens"] > n_first - 20
    assert server.close() == 0
    restarted = start("-m", "starter", "--ctx", "2048")
    _, reopened = restarted.chat({"messages": following, "max_tokens": 8, "temperature": 0})
    assert reopened["usage"]["prompt_tokens_details"]["cached_tokens"] >= n_first
    assert reopened["choices"][0]["message"] == second["choices"][0]["message"]
