"""Clients that abuse a server, in a process of their own: `python -m tests.serve.hostile_clients PORT N_CLIENTS SEED`.

Each client repeats one kind of abuse until the process is ended. The kinds cost the client little: a pause between two
requests keeps the clients from competing with the server for the cores of a test machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

MIB = 1 << 20
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
STORY = {
    "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 900, "temperature": 1,
    "logit_bias": {"2": -100, "0": -100},
}  # fmt: skip


class Client:
    """One connection of a hostile client."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self._port = port
        self.rng = rng

    async def open(self, data: bytes = b"") -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        await self.send(data)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: Any, n_declared: int | None = None, path: str = "/v1/chat/completions") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        n_bytes = len(data) if n_declared is None else n_declared
        await self.open(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n_bytes}\r\n\r\n".encode() + data)

    async def drip(self, data: bytes, delay_s: float = 1.0) -> None:
        """Send bytes one by one until the server closes the connection."""
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(delay_s)
            if self.reader.at_eof():
                return

    async def read(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(1 << 16), 60)


async def slow_head(client: Client) -> None:
    await client.open()
    await client.drip(HEALTH[:-4] + b"\r\nX-Filler: " + b"a" * 1000)


async def slow_second_head(client: Client) -> None:
    await client.open(HEALTH)
    await client.read()
    await client.drip(b"G" * 1000, 3)


async def slow_body(client: Client) -> None:
    await client.post(b'{"messages": [', 10 * MIB)
    await client.drip(b" " * 1000)


async def silence(client: Client) -> None:
    await client.open()
    await client.read()


async def large_body(client: Client) -> None:
    await client.post(b" " * (15 * MIB))
    await client.read()


async def garbage(client: Client) -> None:
    await client.open(client.rng.randbytes(client.rng.choice([10, 1000, 100_000])))
    await client.read()


async def invalid_request(client: Client) -> None:
    body = client.rng.choice([
        b"{", b"[" * 50_000, {"messages": []}, {"messages": [{"role": "king"}]}, b"\xff" * 1000,
        {"messages": [{"role": "user", "content": "x " * 50_000}]},
        {"messages": STORY["messages"], "response_format": {"type": "json_schema", "json_schema": {"schema": False}}},
        {"messages": STORY["messages"], "tools": [{"type": "function", "function": {"name": "a b"}}]},
    ])  # fmt: skip
    await client.post(body, path=client.rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/x"]))
    await client.read()


async def two_lengths(client: Client) -> None:
    await client.open(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n" + HEALTH
    )  # fmt: skip
    await client.read()


async def tiny_chunks(client: Client) -> None:
    await client.open(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 5000
    )
    await client.drip(b"1\r\n" * 100)


async def pipelined_requests(client: Client) -> None:
    await client.open(HEALTH * 50)
    for _ in range(5):
        await client.read()


async def vanish(client: Client) -> None:
    await client.post(STORY)


async def vanish_from_a_stream(client: Client) -> None:
    await client.post(STORY | {"stream": True})
    await client.read()


async def stream_without_reading(client: Client) -> None:
    await client.post(STORY | {"stream": True, "max_tokens": 20})
    await asyncio.sleep(20)


async def half_close(client: Client) -> None:
    await client.open(HEALTH)
    client.writer.write_eof()
    await client.read()


# Kinds of abuse, with the number of clients out of 40. The last ones cost the engine time, as any request does.
KINDS: list[tuple[Callable[[Client], Awaitable[None]], int]] = [
    (slow_head, 5), (slow_second_head, 5), (slow_body, 5), (silence, 5), (large_body, 1), (garbage, 3),
    (invalid_request, 4), (two_lengths, 2), (tiny_chunks, 2), (pipelined_requests, 2), (half_close, 2),
    (vanish, 1), (vanish_from_a_stream, 1), (stream_without_reading, 2),
]  # fmt: skip


async def repeat(kind: Callable[[Client], Awaitable[None]], port: int, rng: random.Random) -> None:
    while True:
        client = Client(port, rng)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await kind(client)
        if hasattr(client, "writer"):
            client.writer.transport.abort()
        await asyncio.sleep(rng.uniform(1, 5))


async def main(port: int, n_clients: int, seed: int) -> None:
    kinds = [kind for kind, weight in KINDS for _ in range(weight)]
    clients = [repeat(kinds[i % len(kinds)], port, random.Random(seed + i)) for i in range(n_clients)]
    await asyncio.gather(*clients)


if __name__ == "__main__":
    asyncio.run(main(*(int(argument) for argument in sys.argv[1:4])))
