"""HTML exports run no script and request nothing."""

from __future__ import annotations

from edgechat.chat.messages import Conversation, Message
from edgechat.store.formats import edgechat_json, html

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) ![p](http://example.org/x.png)"
)


def test_page_contains_no_script_and_no_external_image() -> None:
    message = Message(id="a", role="assistant", text=HOSTILE, reasoning=HOSTILE, model=HOSTILE)
    record = edgechat_json.ConversationRecord(
        conversation=Conversation(id="c", head_id="a", title=HOSTILE), messages=[message]
    )
    page = html.render(record)
    assert "<script" not in page
    assert "<img" not in page
    assert 'href="javascript' not in page
    assert "Content-Security-Policy" in page
