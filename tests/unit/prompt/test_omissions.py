"""Messages that a template leaves out."""

from __future__ import annotations

from edgechat.prompt.omissions import find_omitted
from tests.unit.prompt.test_roles import make


def test_omitted_message_is_found() -> None:
    messages = make("s Be brief.", "u  Hello ", "t result")
    assert find_omitted(messages, "Be brief. Hello") is None
    assert find_omitted(messages, "Hello") == messages[0]
