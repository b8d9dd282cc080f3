"""Long and hostile texts in the engine process: it lives, serves other requests meanwhile, and can be cancelled."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import ContextOverflowError, EdgechatError, RequestCancelledError
from tests.engine.conftest import load_request
from tests.models import write_tiny_llama

MESSAGE = "<|im_start|>user\nx<|im_end|>\n"
LONG_TEXT = "Gravity pulls everything towards the ground. " * 200_000


def submit(engine: EngineClient, request: protocol.Request) -> queue.SimpleQueue[protocol.AnyEvent | EdgechatError]:
    """Submit a request, and return the queue of its outcomes."""
    outcomes: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
    engine.submit(request, outcomes.put)
    return outcomes


def test_many_short_messages_have_the_tokens_of_each(engine: EngineClient) -> None:
    """llama.cpp alone takes over 100 s on two cores; `test_tokenizer` checks that the time is linear."""
    assert len(engine.tokenize(MESSAGE * 40_000)) == 40_000 * len(engine.tokenize(MESSAGE))


def test_text_with_too_many_tokens_is_refused(engine: EngineClient) -> None:
    with pytest.raises(ContextOverflowError, match="more than 1,000 tokens, but the context holds 2,048"):
        engine.tokenize(LONG_TEXT, max_tokens=1000)
    with pytest.raises(ContextOverflowError, match="more than 2,048 tokens, but the context holds 2,048"):
        list(engine.generate(protocol.Generate(id=engine.next_id(), text=LONG_TEXT)))


def test_other_requests_are_served_while_a_text_is_tokenised(engine: EngineClient) -> None:
    slow = protocol.Tokenize(id=engine.next_id(), text=LONG_TEXT * 6)
    slow_outcomes = submit(engine, slow)
    # Sent at once, so that the engine has only a few steps to do before they end, however busy the machine is.
    tokenized = submit(engine, protocol.Tokenize(id=engine.next_id(), text="Hi"))
    generated = submit(engine, protocol.Generate(id=engine.next_id(), text="Hi", max_tokens=4))
    assert isinstance(tokenized.get(), protocol.Tokenized)
    while not isinstance(event := generated.get(), protocol.RequestFinished):
        assert isinstance(event, protocol.AnyEvent)
    assert slow_outcomes.empty()
    engine.cancel(slow.id)
    assert isinstance(slow_outcomes.get(), RequestCancelledError)


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
    with pytest.raises(RequestCancelledError):
        engine.tokenize(LONG_TEXT * 3, cancellation=cancellation)
    timer.join()


def test_long_runs_do_not_end_the_engine(tmp_path: Path) -> None:
    client = EngineClient()
    try:
        client.start()
        pid = client.pid
        for pre_tokenizer in ("gpt-4o", "tekken", "deepseek-v3", "minicpm5"):
            path = write_tiny_llama(tmp_path / f"{pre_tokenizer}.gguf", pre_tokenizer=pre_tokenizer)
            client.load(load_request(client, path, n_ctx=256))
            for text in ("ACGT" * 10_000, "Z" * 131_072, "\n" * 60_000):
                assert len(client.tokenize(text)) >= len(text) // 4
        assert client.pid == pid
    finally:
        client.close()
