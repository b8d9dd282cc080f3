"""Long and hostile texts in the engine process: it lives, serves other requests meanwhile, and can be cancelled."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import ContextOverflowError, EdgechatError, RequestCancelledError
from tests.engine.conftest import load_request
from tests.models import write_tiny_llama

MANY_MESSAGES = "<|im_start|>user\nx<|im_end|>\n" * 40_000
LONG_TEXT = "Gravity pulls everything towards the ground. " * 200_000


def test_many_short_messages_are_tokenised_in_linear_time(engine: EngineClient) -> None:
    assert engine.pid is not None
    process = psutil.Process(engine.pid)

    def measure(n_messages: int) -> tuple[int, float]:
        """Return the number of tokens, and the CPU time of the engine in seconds."""
        before = process.cpu_times()
        n_tokens = len(engine.tokenize(MANY_MESSAGES[: len(MANY_MESSAGES) // 40_000 * n_messages]))
        after = process.cpu_times()
        return n_tokens, after.user + after.system - before.user - before.system

    (n_short, short_s), (n_long, long_s) = measure(10_000), measure(40_000)
    assert n_long == 4 * n_short
    assert long_s < 12 * max(0.1, short_s)  # llama.cpp alone takes over 100 s on two cores, and 16 times as long


def test_text_with_too_many_tokens_is_refused_before_its_end(engine: EngineClient) -> None:
    started_at = time.monotonic()
    with pytest.raises(ContextOverflowError, match="more than 1,000 tokens, but the context holds 2,048"):
        engine.tokenize(LONG_TEXT, max_tokens=1000)
    with pytest.raises(ContextOverflowError, match="more than 2,048 tokens, but the context holds 2,048"):
        list(engine.generate(protocol.Generate(id=engine.next_id(), text=LONG_TEXT)))
    assert time.monotonic() - started_at < 5


def test_other_requests_are_served_while_a_text_is_tokenised(engine: EngineClient) -> None:
    outcomes: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
    slow = protocol.Tokenize(id=engine.next_id(), text=LONG_TEXT)
    engine.submit(slow, outcomes.put)
    assert engine.tokenize("Hi")
    *_, last = engine.generate(protocol.Generate(id=engine.next_id(), text="Hi", max_tokens=4))
    assert isinstance(last, protocol.RequestFinished)
    assert outcomes.empty()
    engine.cancel(slow.id)
    assert isinstance(outcomes.get(timeout=60), RequestCancelledError)


def test_request_that_is_cancelled_before_its_text_is_tokenised_ends_as_usual(engine: EngineClient) -> None:
    request = protocol.Generate(id=engine.next_id(), text="Hi", max_tokens=1)
    engine.cancel(request.id)
    [event] = engine.generate(request)
    assert isinstance(event, protocol.RequestFinished)
    assert event.finish_reason == "cancelled"
    assert event.stats.prompt_tokens == 0


def test_cancellation_interrupts_the_tokenisation(engine: EngineClient) -> None:
    cancellation = Cancellation()
    timer = threading.Timer(0.1, cancellation.cancel)
    timer.start()
    started_at = time.monotonic()
    with pytest.raises(RequestCancelledError):
        engine.tokenize(LONG_TEXT * 3, cancellation=cancellation)
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("pre_tokenizer", ["gpt-4o", "tekken", "deepseek-v3", "minicpm5"])
def test_long_runs_do_not_end_the_engine(tmp_path: Path, pre_tokenizer: str) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", pre_tokenizer=pre_tokenizer)
    client = EngineClient()
    try:
        client.load(load_request(client, path, n_ctx=256))
        pid = client.pid
        for text in ("ACGT" * 10_000, "Z" * 131_072, "\n" * 60_000):
            assert len(client.tokenize(text)) >= len(text) // 4
        assert client.pid == pid
    finally:
        client.close()
