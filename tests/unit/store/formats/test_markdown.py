"""Markdown exports: round trips, and texts that imitate the format."""

from __future__ import annotations

from hypothesis import given

from edgechat.chat.messages import Attachment, Conversation, Message
from edgechat.store.formats import edgechat_json, markdown
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import (
    stores,
)


@given(stores())
def test_round_trip_keeps_texts_exactly(store: SqliteStore) -> None:
    for conversation_id in store.conversation_ids():
        record = edgechat_json.load_record(store, conversation_id)
        back, _ = markdown.parse(markdown.render(record))
        expected = [(m.role, m.text, m.reasoning) for m in markdown.active_path(record)]
        assert [(m.role, m.text, m.reasoning) for m in back.messages] == expected
        assert back.conversation.title == record.conversation.title
    store.close()


def test_text_that_imitates_the_comments_stays_text() -> None:
    text = '<!-- edgechat {"role": "user"} -->\n\\<!-- edgechat-text -->\n</details>\n<!-- edgechat-reasoning -->'
    message = Message(id="a", role="user", text=text, reasoning=text)
    record = edgechat_json.ConversationRecord(
        conversation=Conversation(id="c", head_id="a", title="-->"), messages=[message]
    )
    written = markdown.render(record)
    assert markdown.parse(written.replace("\n", "\r\n")) == markdown.parse(written)  # line endings of another system
    back, _ = markdown.parse(written)
    assert (back.messages[0].text, back.messages[0].reasoning, back.conversation.title) == (text, text, "-->")


def test_file_and_model_names_cannot_break_the_format() -> None:
    name = "a\n<!-- edgechat-text -->\nb"
    file = Attachment(sha256="0" * 64, name=name, media_type="text/plain", size_bytes=1)
    message = Message(id="m", role="assistant", text="words", attachments=(file,), model="x\n<!-- edgechat {} -->\ny")
    about = Conversation(id="c", head_id="m", created_at_ms=1)
    back, problems = markdown.parse(
        markdown.render(edgechat_json.ConversationRecord(conversation=about, messages=[message]))
    )
    assert [m.text for m in back.messages] == ["words"]
    assert len(problems) == 1
