"""Lines that are typed during a reply: `/now` takes effect at once, other lines are kept."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from edgechat.cli.reply_input import ReplyInput
from tests.time_limit import HANG_S
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals of Unix")


def test_now_is_handled_during_the_reply_and_other_lines_afterwards() -> None:
    terminal, terminal_fd = os.openpty()
    now = threading.Event()
    reply_input = ReplyInput(now.set, terminal_fd)
    with reply_input.watch():
        os.write(terminal, b"next question\n")
        os.write(terminal, b"/now\n")
        assert now.wait(HANG_S)
        until(lambda: reply_input.lines)
    assert reply_input.lines == ["next question"]
    assert not reply_input.is_at_end
    with reply_input.watch():
        os.write(terminal, b"\x04")
        until(lambda: reply_input.is_at_end)
    with reply_input.watch():
        pass
    os.close(terminal)
    os.close(terminal_fd)


def test_pipe_is_not_read_during_a_reply() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"/now\n")
    with ReplyInput(pytest.fail, reader).watch():
        pass
    assert os.read(reader, 10) == b"/now\n"
    os.close(reader)
    os.close(writer)
