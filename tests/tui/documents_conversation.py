"""A stored conversation with passages of documents, and a reply that cites them."""

from __future__ import annotations

import hashlib

from edgechat.chat.messages import Attachment, Conversation, Message, new_id
from edgechat.chat.store import Store
from edgechat.documents.passages import (
    PASSAGES_MEDIA_TYPE,
    Passage,
    PassageScores,
    PassageSet,
    SearchedDocuments,
    encode_passages,
)

PASSAGES = (
    Passage(
        number=1, collection="reports", document="2024/annual-report.pdf",
        path="/home/ada/reports/2024/annual-report.pdf",
        text="Revenue rose to 1,250 thousand euros in 2024, from 980 thousand in 2023.\n\nThe board of Nordlicht AG "
        "proposes a dividend of 0.50 euros per share.",
        heading="Results > Revenue", page=12,
        scores=PassageScores(bm25_rank=1, similarity_rank=3, similarity=0.71, relevance=0.93),
    ),
    Passage(
        number=2, collection="reports", document="notes/costs.md", path="/home/ada/reports/notes/costs.md",
        text="# Costs\n\n- Energy: 120 thousand euros\n- Rent: 80 thousand euros\n- Staff: 410 thousand euros",
        heading="Costs", first_line=40, last_line=44, scores=PassageScores(bm25_rank=2),
    ),
    Passage(
        number=3, collection="reports", document="notes/people.md", path="/home/ada/reports/notes/people.md",
        text="Erika Mustermann leads the office in Kiel.", first_line=7, last_line=7,
        scores=PassageScores(bm25_rank=3),
    ),
)  # fmt: skip
FOUND = PassageSet(
    collections=("reports",), passages=PASSAGES, query="How did revenue and costs develop?",
    searched=SearchedDocuments(n_documents=12, n_chunks=340),
)  # fmt: skip
QUESTION = "How did revenue and costs develop?"
REPLY = """Revenue rose to **1,250 thousand euros** in 2024 [1], and energy cost 150 thousand euros [2].

- Staff cost 410 thousand euros [2]
- The office in Kiel is led by Erika Mustermann [1, 3].

| item | amount |
|---|---|
| rent | 80 thousand [2] |

Nothing is known about 2025 [9]. In code, `a[1]` stays.
"""


def save_cited_conversation(
    store: Store, passages: PassageSet = FOUND, reply: str = REPLY, question: str = QUESTION
) -> Conversation:
    """Save a conversation of one question with `passages`, and its reply; return it as the store has it."""
    data = encode_passages(passages)
    sha256 = hashlib.sha256(data).hexdigest()
    attachment = Attachment(sha256=sha256, name="documents", media_type=PASSAGES_MEDIA_TYPE, size_bytes=len(data))
    conversation = Conversation(id=new_id(), title="Revenue and costs", model="starter", created_at_ms=1)
    user = Message(id=new_id(), role="user", text=question, attachments=(attachment,), created_at_ms=1)
    answer = Message(
        id=new_id(), parent_id=user.id, role="assistant", text=reply, finish_reason="stop", created_at_ms=1
    )
    store.append(conversation, [user, answer], {sha256: data})
    return store.conversation(conversation.id)
