"""Passages of a path are read once, and damaged or missing ones are left out."""

from __future__ import annotations

import contextlib
import hashlib

from edgechat.chat.messages import Attachment, Conversation, Message
from edgechat.documents.passages import PASSAGES_MEDIA_TYPE, Passage, PassageSet, encode_passages
from edgechat.store import open_ephemeral_store
from edgechat.tui.conversation_passages import NO_PASSAGES, read_passages


def _message(message_id: str, data: bytes, media_type: str = PASSAGES_MEDIA_TYPE) -> Message:
    sha256 = hashlib.sha256(data).hexdigest()
    attachment = Attachment(sha256=sha256, name="documents", media_type=media_type, size_bytes=len(data))
    return Message(id=message_id, role="user", text="q", attachments=(attachment,))


def test_passages_of_a_path_are_read_once() -> None:
    passage_set = PassageSet(collections=("c",), passages=(Passage(number=1, collection="c", document="d", text="t"),))
    data = encode_passages(passage_set)
    good, damaged, missing = _message("m1", data), _message("m2", b"{"), _message("m3", b"never saved")
    other = _message("m4", b"text", "text/plain")
    with contextlib.closing(open_ephemeral_store()) as store:
        files = {m.attachments[0].sha256: d for m, d in ((good, data), (damaged, b"{"), (other, b"text"))}
        store.append(Conversation(id="c"), [good, damaged, other], files)
        passages = read_passages(store, [good, damaged, missing, other])
        assert passages.sets == {"m1": passage_set}
        assert read_passages(store, [good, damaged, missing, other]) is passages
        assert read_passages(store, [other]) is NO_PASSAGES
        assert read_passages(store, [good]) is not passages
    assert [c.numbers for c in passages.find_citations("it is [1]")] == [(1,)]
