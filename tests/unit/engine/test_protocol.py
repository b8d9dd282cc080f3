"""Messages between client and engine: encoding, decoding, and frozen types."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.config import Sampling
from edgechat.engine import frames, protocol
from edgechat.engine.failures import OUT_OF_MEMORY_MESSAGE, create_failure_event
from edgechat.engine.pipe import MAX_FRAME_BYTES
from edgechat.errors import EngineError, GrammarError

REQUEST = protocol.Generate(id=7, text="hé", guard="\ufdd0", tokens=[1, 2], sampling=Sampling(seed=3))
EVENT = protocol.TokensGenerated(id=7, text="x", tokens=[5])


def test_decoded_message_equals_encoded_message() -> None:
    assert frames.decode_request(frames.encode(REQUEST)[4:]) == REQUEST
    assert frames.decode_event(frames.encode(EVENT)[4:]) == EVENT


def test_frame_starts_with_the_length_of_its_body() -> None:
    frame = frames.encode(REQUEST)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    with pytest.raises(EngineError, match="the limit is"):
        frames.encode(protocol.TokensGenerated(id=1, text="x" * MAX_FRAME_BYTES, tokens=[]))


@given(st.binary(max_size=200))
def test_random_bytes_are_an_error(body: bytes) -> None:
    for decode in (frames.decode_event, frames.decode_request):
        with pytest.raises(EngineError, match="invalid message"):
            decode(body)


def test_truncated_message_and_message_of_other_direction_are_errors() -> None:
    request, event = frames.encode(REQUEST)[4:], frames.encode(EVENT)[4:]
    for n_bytes in range(len(request)):
        with pytest.raises(EngineError, match="invalid message"):
            frames.decode_request(request[:n_bytes])
    with pytest.raises(EngineError, match="invalid message"):
        frames.decode_request(event)
    with pytest.raises(EngineError, match="invalid message"):
        frames.decode_event(request)


def test_all_messages_are_frozen() -> None:
    for message_type in (*protocol.AnyRequest.__args__, *protocol.AnyEvent.__args__):
        assert message_type.__struct_config__.frozen
    with pytest.raises(AttributeError):
        protocol.Stats(id=1).id = 2  # type: ignore[misc]
    assert msgspec.structs.replace(protocol.Stats(id=1), id=2).id == 2


def test_failure_names_the_error_class() -> None:
    failed = create_failure_event(3, GrammarError("bad grammar"))
    assert (failed.id, failed.error_type, failed.message) == (3, "GrammarError", "bad grammar")
    failed = create_failure_event(3, MemoryError())
    assert (failed.error_type, failed.message) == ("PlanError", OUT_OF_MEMORY_MESSAGE)
