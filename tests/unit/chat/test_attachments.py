"""Attached text files in the prompt."""

from __future__ import annotations

import time

import pytest

from edgechat.chat.attachments import prepend_attachments
from edgechat.chat.messages import Attachment


def prompt_with(data: bytes) -> str:
    attachment = Attachment(sha256="0" * 64, name="notes.md", media_type="text/markdown", size_bytes=len(data))
    return prepend_attachments("Summarise.", [attachment], lambda sha256: data)


@pytest.mark.parametrize(("text", "fence"), [("plain", "```"), ("a `b` ```c```", "````"), ("``````", "```````")])
def test_fence_is_longer_than_every_run_of_backticks_in_the_file(text: str, fence: str) -> None:
    assert prompt_with(text.encode()) == f"notes.md:\n{fence}\n{text}\n{fence}\n\nSummarise."


def test_file_of_backticks_takes_linear_time() -> None:
    started_at = time.monotonic()
    prompt = prompt_with(b"`" * 2_000_000)  # a search per length of the fence would take hours
    assert len(prompt) > 6_000_000
    assert time.monotonic() - started_at < 10
