"""Frames over a pair of pipes, within one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from edgechat.engine.pipe import MAX_FRAME_BYTES, Channel, make_frame


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    down_read, down_write = os.pipe()
    up_read, up_write = os.pipe()
    pair = Channel(up_read, down_write), Channel(down_read, up_write)
    yield pair
    for channel in pair:
        channel.close()


def test_frames_arrive_whole_and_in_order(channels: tuple[Channel, Channel]) -> None:
    parent, child = channels
    for body in (b"", b"one", b"two" * 1000):
        assert parent.write(make_frame(body))
        assert child.read() == body


def test_end_of_the_pipe_is_none_and_writing_to_it_fails(channels: tuple[Channel, Channel]) -> None:
    parent, child = channels
    child.close()
    assert parent.read() is None
    assert not parent.write(make_frame(b"x"))


@pytest.mark.parametrize("data", [b"\0\0", b"\0\0\0\5abc", (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x"])
def test_incomplete_or_oversized_frame_is_none(channels: tuple[Channel, Channel], data: bytes) -> None:
    parent, child = channels
    assert parent.write(data)
    parent.close()
    assert child.read() is None
