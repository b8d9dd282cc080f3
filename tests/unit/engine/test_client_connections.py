"""Clients of one engine process: each gets the events of its own requests, and only these are cancelled at its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator

import pytest

from edgechat.engine import client_connections, frames, protocol
from edgechat.engine.client_connections import ClientConnections
from edgechat.engine.generation import DrafterState, GenerationStats
from edgechat.engine.pipe import Channel, make_frame
from edgechat.engine.resident_server import must_end
from edgechat.hardware.free_memory import FreeMemory

AMPLE = FreeMemory(total_bytes=8 << 30, available_bytes=4 << 30)
SHORT = FreeMemory(total_bytes=8 << 30, available_bytes=1 << 20)
TIMEOUT_S = 60


class Handler:
    """Records what the clients' threads report."""

    def __init__(self) -> None:
        self.requests: list[protocol.AnyRequest] = []
        self.removed: list[tuple[int, list[int]]] = []
        self.loaded: protocol.Loaded | None = None
        self.changed = threading.Condition()

    def receive(self, request: protocol.AnyRequest) -> None:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def remove_client(self, number: int, unfinished_ids: Collection[int]) -> None:
        with self.changed:
            self.removed.append((number, sorted(unfinished_ids)))
            self.changed.notify_all()

    def describe_model(self, request_id: int) -> protocol.Attached:
        return protocol.Attached(id=request_id, loaded=self.loaded)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT_S)


class Client:
    """The other end of a connection."""

    def __init__(self, connections: ClientConnections) -> None:
        read_fd, engine_write_fd = os.pipe()
        engine_read_fd, write_fd = os.pipe()
        self.channel = Channel(read_fd, write_fd)
        connections.add(Channel(engine_read_fd, engine_write_fd))

    def send(self, request: protocol.Request) -> None:
        assert self.channel.write(frames.encode(request))

    def receive(self) -> protocol.AnyEvent | None:
        body = self.channel.read()
        return frames.decode_event(body) if body is not None else None

    def attach(self, name: str, keep_alive_s: float = 5.0) -> protocol.AnyEvent | None:
        self.send(protocol.Attach(id=1, client=protocol.ClientInfo(name, 7), keep_alive_s=keep_alive_s))
        return self.receive()


Connect = Callable[[ClientConnections], Client]


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def connections(handler: Handler) -> ClientConnections:
    return ClientConnections(handler, is_shared=True)


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[Client] = []

    def connect_client(connections: ClientConnections) -> Client:
        clients.append(Client(connections))
        return clients[-1]

    yield connect_client
    for client in clients:
        client.channel.close()


@pytest.fixture
def clients(connections: ClientConnections, connect: Connect) -> list[Client]:
    return [connect(connections) for _ in range(3)]


def test_each_client_gets_the_events_of_its_own_requests(
    handler: Handler, connections: ClientConnections, clients: list[Client]
) -> None:
    for client in clients:
        client.send(protocol.Tokenize(id=4, text="same id"))
    handler.wait_for(lambda: len(handler.requests) == len(clients))
    ids = [request.id for request in handler.requests]
    assert len(set(ids)) == len(clients)
    for token, request_id in enumerate(sorted(ids)):
        connections.write(protocol.Tokenized(id=request_id, tokens=[token]))
    for token, client in enumerate(clients):
        assert client.receive() == protocol.Tokenized(id=4, tokens=[token])
    connections.write(protocol.Heartbeat(id=0))
    assert [client.receive() for client in clients] == [protocol.Heartbeat(id=0, n_clients=3)] * len(clients)


def test_requests_about_a_request_mean_that_of_the_same_client(handler: Handler, clients: list[Client]) -> None:
    clients[2].send(protocol.Tokenize(id=4, text=""))
    clients[2].send(protocol.EndThinking(id=5, target_id=4))
    clients[2].send(protocol.Cancel(id=6, target_id=4))
    handler.wait_for(lambda: len(handler.requests) == 3)
    tokenize, *others = handler.requests
    assert [getattr(request, "target_id", None) for request in others] == [tokenize.id, tokenize.id]


@pytest.mark.parametrize("ends_by", ["close", "invalid message", "negative id"])
def test_only_the_requests_of_a_client_that_ends_are_cancelled(
    handler: Handler, connections: ClientConnections, clients: list[Client], ends_by: str
) -> None:
    for client in clients:
        client.send(protocol.Tokenize(id=4, text=""))
    handler.wait_for(lambda: len(handler.requests) == 3)
    finished_id, left_id, kept_id = sorted(request.id for request in handler.requests)
    connections.write(protocol.Tokenized(id=finished_id, tokens=[]))
    if ends_by == "close":
        clients[1].channel.leave()
    else:
        frame = make_frame(b"\xff") if ends_by == "invalid message" else frames.encode(protocol.Stats(id=-1))
        clients[1].channel.write(frame)
    handler.wait_for(lambda: handler.removed == [(1, [left_id])])
    connections.write(protocol.Tokenized(id=left_id, tokens=[]))  # nobody waits for it any more
    connections.write(protocol.Tokenized(id=kept_id, tokens=[3]))
    assert clients[2].receive() == protocol.Tokenized(id=4, tokens=[3])
    assert clients[0].receive() == protocol.Tokenized(id=4, tokens=[])


def test_client_that_does_not_read_is_left_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch, connections: ClientConnections, clients: list[Client]
) -> None:
    monkeypatch.setattr(client_connections, "MAX_WAITING_BYTES", 1 << 20)
    event = protocol.Tokenized(id=1, tokens=[1000] * 100_000)
    for _ in range(10):  # 3 MB, more than a pipe holds
        connections.write(event)
    connections.write(protocol.Tokenized(id=(1 << client_connections.REQUEST_ID_BITS) + 2, tokens=[5]))
    assert clients[1].receive() == protocol.Tokenized(id=2, tokens=[5])
    received = []
    while (answer := clients[0].receive()) is not None:
        received.append(answer)
    assert len(received) < 10


def test_status_names_the_attached_clients(
    handler: Handler, connections: ClientConnections, clients: list[Client]
) -> None:
    assert clients[0].attach("chat") == protocol.Attached(id=1)
    assert clients[1].attach("ask", keep_alive_s=30.0) == protocol.Attached(id=1)
    clients[1].send(protocol.Tokenize(id=2, text=""))
    handler.wait_for(lambda: bool(handler.requests))
    clients[2].send(protocol.GetStatus(id=9))
    status = clients[2].receive()
    assert isinstance(status, protocol.EngineStatus)
    assert [(c.name, c.n_requests) for c in status.clients] == [("chat", 0), ("ask", 1)]
    assert (status.id, status.keep_alive_s, status.idle_s) == (9, 30.0, 0.0)


@pytest.mark.parametrize(
    ("keep_alive_s", "idle_s", "memory", "ends"),
    [
        (300, 10, AMPLE, False), (300, 301, AMPLE, True), (0, 0, AMPLE, True), (-1, 1e6, AMPLE, False),
        (-1, 10, SHORT, True), (300, 10, SHORT, True),
    ],
)  # fmt: skip
def test_engine_without_clients_ends_after_its_time_or_when_memory_is_short(
    handler: Handler, connect: Connect, monkeypatch: pytest.MonkeyPatch, keep_alive_s: float, idle_s: float,
    memory: FreeMemory, *, ends: bool,
) -> None:  # fmt: skip
    handler.loaded = make_loaded()
    now = 1000.0
    monkeypatch.setattr("edgechat.engine.client_connections.time.monotonic", lambda: now)
    connections = ClientConnections(handler, is_shared=True)
    client = connect(connections)
    client.attach("chat", keep_alive_s)
    assert not must_end(connections.describe_status(), lambda: AMPLE, can_accept=True)
    client.channel.leave()
    handler.wait_for(lambda: bool(handler.removed))
    now += idle_s
    assert must_end(connections.describe_status(), lambda: memory, can_accept=True) == ends
    assert must_end(connections.describe_status(), lambda: memory, can_accept=False)


def test_idle_engine_with_clients_ends_only_when_memory_is_short(
    handler: Handler, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler.loaded = make_loaded()
    now = 1000.0
    monkeypatch.setattr("edgechat.engine.client_connections.time.monotonic", lambda: now)
    connections = ClientConnections(handler, is_shared=True)
    connect(connections).attach("chat", 0)
    now += 1e6
    assert not must_end(connections.describe_status(), lambda: AMPLE, can_accept=True)
    assert must_end(connections.describe_status(), lambda: SHORT, can_accept=True)
    client = connect(connections)
    client.attach("ask")
    client.send(protocol.Tokenize(id=2, text=""))
    handler.wait_for(lambda: bool(handler.requests))
    assert not must_end(connections.describe_status(), lambda: SHORT, can_accept=True)  # a request has not ended


def test_engine_that_ends_refuses_further_clients(connections: ClientConnections, connect: Connect) -> None:
    ended: list[bool] = []
    connections.on_end = lambda: ended.append(True)
    early, late = connect(connections), connect(connections)
    assert not connections.end_if(lambda status: True)  # the new connections may attach yet
    assert early.attach("chat") is not None
    connections.begin_end()
    assert ended == [True]
    assert late.attach("ask") is None
    assert connections.end_if(lambda status: False)


def test_reply_that_the_end_of_the_engine_cuts_does_not_seem_complete(
    connections: ClientConnections, clients: list[Client]
) -> None:
    connections.begin_end()
    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=1, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0
    )
    for reason in ("cancelled", "stop"):
        event = protocol.RequestFinished(id=3, finish_reason=reason, stats=stats, context_tokens=2)
        connections.write(event)
    received = clients[0].receive()
    assert isinstance(received, protocol.RequestFinished)
    assert received.finish_reason == "stop"


def test_cancelled_request_is_not_counted_in_the_use_of_the_prompt_cache(connections: ClientConnections) -> None:
    stats = GenerationStats(
        prompt_tokens=9, cached_tokens=3, completion_tokens=1, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0
    )
    for reason in ("stop", "cancelled"):
        connections.write(protocol.RequestFinished(id=3, finish_reason=reason, stats=stats, context_tokens=2))
    use = connections.describe_status().cache_use
    assert (use.n_prompts, use.prompt_tokens, use.cached_tokens) == (1, 9, 3)


def test_status_has_the_drafter_after_the_last_request_of_the_model(
    connections: ClientConnections,
) -> None:
    stats = GenerationStats(
        prompt_tokens=9, cached_tokens=3, completion_tokens=1, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0
    )
    states = [DrafterState(is_open=True), DrafterState(is_open=False, error="It failed."), None]
    for state in states:
        event = protocol.RequestFinished(id=3, finish_reason="stop", stats=stats, context_tokens=2, drafter=state)
        connections.write(event)
        assert connections.describe_status().drafter == state


@pytest.mark.parametrize("is_used", [False, True])
def test_unused_engine_ends_on_request_and_a_used_one_stays(
    handler: Handler, connections: ClientConnections, connect: Connect, *, is_used: bool
) -> None:
    if is_used:
        connect(connections).attach("chat")
    asking = connect(connections)
    asking.send(protocol.Shutdown(id=0, if_unused=True))
    asking.send(protocol.GetStatus(id=2))
    assert asking.receive() is not None  # the request has been handled
    assert [type(request) for request in handler.requests] == ([] if is_used else [protocol.Shutdown])


def make_loaded() -> protocol.Loaded:
    return protocol.Loaded(
        id=1, backend="x64", n_ctx=10, n_ctx_train=10, n_threads=1, n_params=1, n_vocab=1, size_bytes=1,
        chat_template=None, bos="", eos="", control_tokens=[], can_truncate=True, load_s=0.0,
    )  # fmt: skip
